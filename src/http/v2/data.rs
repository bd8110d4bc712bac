//! The `data` of a tensor in JSON: a flat list, or one nested as deep as the shape, to elements in one pass.

use std::fmt;

use hotserve_models::{Data, DataType, TensorSpec};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::wire::{Target, WireType, kept_by, misfit, shown};

/// Elements, and how they were nested.
#[derive(Debug)]
pub struct Values {
    pub data: Data,
    /// The length of the lists of each depth.
    lengths: Vec<usize>,
}

impl Values {
    /// Whether the nesting, if there is any, is that of the shape.
    pub fn fit(&self, shape: &[usize], spec: &TensorSpec) -> Result<(), String> {
        let (name, count) = (&spec.name, shape.iter().product::<usize>());
        if self.lengths.len() > 1 && self.lengths != shape {
            return Err(format!("input {name:?}: the lists are nested as {:?}, the shape is {shape:?}", self.lengths));
        }
        let given = self.data.len();
        if given == count {
            Ok(())
        } else {
            Err(format!("input {name:?}: shape {shape:?} takes {count} elements, not {given}"))
        }
    }
}

/// Reads the elements of an input, which has been found to take this datatype.
pub struct Read<'a> {
    pub spec: &'a TensorSpec,
    pub datatype: WireType,
    /// For how many room is made before they come; more take what they need.
    pub room: usize,
}

impl<'de> DeserializeSeed<'de> for Read<'_> {
    type Value = Values;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Values, D::Error> {
        let mut lengths = Vec::new();
        let data = match self.spec.datatype {
            DataType::Bool => Data::Bool(self.list(json, &mut lengths)?),
            DataType::Int32 => Data::Int32(self.list(json, &mut lengths)?),
            DataType::Int64 => Data::Int64(self.list(json, &mut lengths)?),
            DataType::Fp32 => Data::Fp32(self.list(json, &mut lengths)?),
            DataType::Fp64 => Data::Fp64(self.list(json, &mut lengths)?),
            DataType::Bytes => Data::Bytes(self.list(json, &mut lengths)?),
        };
        Ok(Values { data, lengths: lengths.into_iter().map(|length| length.unwrap_or(0)).collect() })
    }
}

impl Read<'_> {
    fn list<'de, T: Element, D: Deserializer<'de>>(
        &self,
        json: D,
        lengths: &mut Vec<Option<usize>>,
    ) -> Result<Vec<T>, D::Error> {
        let mut values = Vec::with_capacity(self.room);
        let mut leaf = None;
        let item = Item { read: self, values: &mut values, lengths, leaf: &mut leaf, depth: 0 };
        item.deserialize(json)?;
        Ok(values)
    }
}

/// An element as JSON has it.
trait Element: Sized {
    fn whole(_: WireType, _: i128) -> Option<Self> {
        None
    }
    fn float(_: WireType, _: f64) -> Option<Self> {
        None
    }
    fn boolean(_: bool) -> Option<Self> {
        None
    }
    fn text(_: &str) -> Option<Self> {
        None
    }
    fn null() -> Option<Self> {
        None
    }
}

macro_rules! number {
    ($($type:ty, $null:expr);*) => { $(
        impl Element for $type {
            #[expect(clippy::cast_precision_loss, reason = "it is what the client calls a float")]
            fn whole(datatype: WireType, value: i128) -> Option<Self> {
                if datatype.is_float() {
                    return Self::of_float(value as f64);
                }
                datatype.holds(value).then_some(value).and_then(Self::of_whole)
            }

            #[expect(clippy::cast_possible_truncation, reason = "a saturated one is out of every range")]
            fn float(datatype: WireType, value: f64) -> Option<Self> {
                if datatype.is_float() {
                    return Self::of_float(value);
                }
                (value.trunc() == value).then_some(value as i128).and_then(|value| Self::whole(datatype, value))
            }

            fn null() -> Option<Self> {
                $null
            }
        }
    )* };
}
// Where a number is missing, as in the other bodies.
number!(i32, None; i64, None; f32, Some(Self::NAN); f64, Some(Self::NAN));

// Some clients have no word but numbers for them.
impl Element for bool {
    fn whole(_: WireType, value: i128) -> Option<Self> {
        match value {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn float(datatype: WireType, value: f64) -> Option<Self> {
        match value {
            0.0 => Self::whole(datatype, 0),
            1.0 => Self::whole(datatype, 1),
            _ => None,
        }
    }

    fn boolean(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Element for String {
    fn text(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
}

/// What lies at one depth: a list, or an element.
struct Item<'a, T> {
    read: &'a Read<'a>,
    values: &'a mut Vec<T>,
    lengths: &'a mut Vec<Option<usize>>,
    /// At which depth the elements are.
    leaf: &'a mut Option<usize>,
    depth: usize,
}

impl<T: Element> Item<'_, T> {
    fn push<E: Error>(self, value: Option<T>, got: impl fmt::Display) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom(format_args!("input {:?}: data is a list, not {got}", self.read.spec.name)));
        }
        if *self.leaf.get_or_insert(self.depth) != self.depth {
            return Err(self.mixed());
        }
        match value {
            Some(value) => {
                self.values.push(value);
                Ok(())
            }
            None => Err(self.unfit(got)),
        }
    }

    fn mixed<E: Error>(&self) -> E {
        let (name, index) = (&self.read.spec.name, self.values.len());
        E::custom(format_args!("input {name:?}: element {index}: lists and values are mixed"))
    }

    fn unfit<E: Error>(&self, got: impl fmt::Display) -> E {
        let (spec, datatype) = (self.read.spec, self.read.datatype);
        let kept = match (spec.datatype, datatype) {
            (DataType::Bool, _) => "true or false".to_owned(),
            (DataType::Bytes, _) => "a string".to_owned(),
            (takes, given) if takes.as_str() == given.as_str() || given.is_float() => kept_by(takes),
            (takes, given) => format!("{given}, and {}", kept_by(takes)),
        };
        E::custom(misfit(&spec.name, self.values.len(), &kept, got))
    }
}

impl<'de, T: Element> DeserializeSeed<'de> for Item<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, T: Element> Visitor<'de> for Item<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the elements of input {:?}", self.read.spec.name)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.push(T::boolean(value), value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        let kept = T::whole(self.read.datatype, value.into());
        self.push(kept, value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        let kept = T::whole(self.read.datatype, value.into());
        self.push(kept, value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        let kept = T::float(self.read.datatype, value);
        self.push(kept, format_args!("{value:?}"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        let kept = T::text(value);
        if kept.is_some() { self.push(kept, "a string") } else { self.push(kept, format_args!("{}", shown(value))) }
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.push(T::null(), "null")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.leaf.is_some_and(|leaf| self.depth >= leaf) {
            return Err(self.mixed());
        }
        let Self { read, values, lengths, leaf, depth } = self;
        if lengths.len() == depth {
            lengths.push(None);
        }
        let mut length = 0;
        loop {
            let item = Item { read, values: &mut *values, lengths: &mut *lengths, leaf: &mut *leaf, depth: depth + 1 };
            match seq.next_element_seed(item)? {
                Some(()) => length += 1,
                None => break,
            }
        }
        let before = lengths.get_mut(depth).map_or(length, |before| *before.get_or_insert(length));
        if before == length {
            return Ok(());
        }
        let name = &read.spec.name;
        let lists = format_args!("input {name:?}: a list of {length} beside one of {before}, before element ");
        Err(A::Error::custom(format_args!("{lists}{}", values.len())))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.push(None, "an object")
    }
}
