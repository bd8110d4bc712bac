//! What a model's signature says of names, made ready once, so that a request only asks.

use std::cmp::Ordering;

use hotserve_models::{Dim, Signature, TensorSpec};

/// How the body of a request finds its place in a model's inputs.
#[derive(Debug)]
pub struct Layout {
    /// The names of the inputs.
    pub inputs: Lookup,
    /// The names of the outputs.
    pub outputs: Lookup,
    /// For each input the names of its columns: none, where the signature names none or not each of them.
    pub features: Box<[Lookup]>,
}

impl Layout {
    /// The layout that a signature asks for.
    pub fn of(signature: &Signature) -> Self {
        let features = signature.inputs.iter().map(features).collect();
        Self { inputs: tensors(&signature.inputs), outputs: tensors(&signature.outputs), features }
    }
}

fn tensors(specs: &[TensorSpec]) -> Lookup {
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    Lookup::new(&names, names.len())
}

fn features(spec: &TensorSpec) -> Lookup {
    let names: Vec<&str> = spec.features.iter().map(String::as_str).collect();
    match spec.shape.as_slice() {
        [_, Dim::Fixed(width)] if names.len() == *width => Lookup::new(&names, *width),
        [_, Dim::Fixed(width)] => Lookup::new(&[], *width),
        [_, Dim::Any] => Lookup::new(&names, names.len()),
        _ => Lookup::new(&[], 0),
    }
}

/// Names by position, and positions by name.
///
/// Where no name is a number, a number stands for its position, counted from 0: a DataFrame whose columns nobody named
/// has them numbered so.
#[derive(Debug)]
pub struct Lookup {
    names: Box<[Box<str>]>,
    /// The positions, by name.
    sorted: Box<[u32]>,
    /// How many positions there are, named or not; 0 where it is open.
    width: usize,
    numbered: bool,
}

impl Lookup {
    fn new(names: &[&str], width: usize) -> Self {
        let mut sorted: Vec<(&str, u32)> = names.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        Self {
            names: names.iter().map(|name| Box::from(*name)).collect(),
            sorted: sorted.into_iter().map(|(_, index)| index).collect(),
            width,
            numbered: names.iter().all(|name| number(name).is_none()),
        }
    }

    /// How many positions there are, named or not; 0 where that is open.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Every name, by position; none where there are none.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// The name of a position.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.names.get(index).map(AsRef::as_ref)
    }

    /// The position of a name, or of a number.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.exact(name).or_else(|| number(name).filter(|index| self.numbered && *index < self.width))
    }

    /// The position of a name, and of nothing that stands for one.
    pub fn exact(&self, name: &str) -> Option<usize> {
        let order = |index: &u32| self.get(*index as usize).map_or(Ordering::Less, |candidate| candidate.cmp(name));
        let at = self.sorted.binary_search_by(order).ok()?;
        self.sorted.get(at).map(|index| *index as usize)
    }
}

/// The number that a label is: 0, 1, … and nothing else.
pub fn number(label: &str) -> Option<usize> {
    let plain = label.bytes().all(|byte| byte.is_ascii_digit()) && (label.len() == 1 || !label.starts_with('0'));
    if plain { label.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whatever_their_order() {
        let lookup = Lookup::new(&["b", "", "a", "ü"], 4);
        assert_eq!(["b", "", "a", "ü"].map(|name| lookup.find(name)), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(["c", "4", "01", "+1", "-1", "1.0"].map(|name| lookup.find(name)), [None; 6]);
        assert_eq!(["0", "3"].map(|name| lookup.find(name)), [Some(0), Some(3)]);
        assert_eq!(["a", "ü", "0", "3"].map(|name| lookup.exact(name)), [Some(2), Some(3), None, None]);
    }

    #[test]
    fn a_number_is_a_name_where_names_are_numbers() {
        let lookup = Lookup::new(&["1", "2", "x"], 3);
        assert_eq!(["0", "1", "2", "x"].map(|name| lookup.find(name)), [None, Some(0), Some(1), Some(2)]);
        let nameless = Lookup::new(&[], 2);
        assert_eq!(["0", "1", "2", "x"].map(|name| nameless.find(name)), [Some(0), Some(1), None, None]);
    }
}
