//! The part of `onnx.proto` that is needed, read from the wire without a copy: names, attributes and tensors are slices
//! of the file until an operator asks for them.
//!
//! The fields' numbers are those of <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.

use super::value::{Buf, Fault, Shape, Slice, Value, malformed, unsupported};

/// More nodes than any exporter writes for a classical model.
const MAX_NODES: usize = 1 << 16;

/// The largest extent of a tensor of no elements.
const EMPTY_EXTENT: usize = 1 << 20;

/// One field of a message.
#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// The fields of a message, in the order of the file.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            if at == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(at + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(malformed("a number is cut off or too long"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("a field is cut off"))?;
        self.0 = rest;
        Ok(head)
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, Fault> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(self.take(8)?.try_into().unwrap_or_default()),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(self.take(4)?.try_into().unwrap_or_default()),
            other => return Err(malformed(format!("a field has the wire type {other}"))),
        };
        match key >> 3 {
            0 => Err(malformed("a field has the number 0")),
            number => Ok(Some((number, field))),
        }
    }
}

impl<'a> Field<'a> {
    fn bytes(self) -> Result<&'a [u8], Fault> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(malformed("a number stands where a message or a text is expected")),
        }
    }

    fn text(self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| malformed("a text is not UTF-8"))
    }

    fn int(self) -> Result<i64, Fault> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            _ => Err(malformed("something else stands where an integer is expected")),
        }
    }

    /// One integer or a packed list of them.
    fn ints(self, into: &mut Vec<i64>) -> Result<(), Fault> {
        let Self::Bytes(bytes) = self else {
            into.push(self.int()?);
            return Ok(());
        };
        let mut packed = Fields(bytes);
        while !packed.0.is_empty() {
            into.push(packed.varint()?.cast_signed());
        }
        Ok(())
    }

    /// One number or a packed list of them.
    fn floats(self, into: &mut Vec<f32>) -> Result<(), Fault> {
        match self {
            Self::Fixed32(bytes) => into.push(f32::from_le_bytes(bytes)),
            Self::Bytes(bytes) => into.extend(words(bytes)?.map(f32::from_le_bytes)),
            _ => return Err(malformed("something else stands where a number is expected")),
        }
        Ok(())
    }

    fn doubles(self, into: &mut Vec<f64>) -> Result<(), Fault> {
        match self {
            Self::Fixed64(bytes) => into.push(f64::from_le_bytes(bytes)),
            Self::Bytes(bytes) => into.extend(words(bytes)?.map(f64::from_le_bytes)),
            _ => return Err(malformed("something else stands where a number is expected")),
        }
        Ok(())
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Result<impl Iterator<Item = [u8; N]> + '_, Fault> {
    let (words, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() { Ok(words.iter().copied()) } else { Err(malformed("a list of numbers is cut off")) }
}

/// A whole file.
#[derive(Debug, Default)]
pub(super) struct Model<'a> {
    pub(super) ir_version: i64,
    pub(super) opsets: Vec<(&'a str, i64)>,
    pub(super) graph: Graph<'a>,
}

#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) initializers: Vec<&'a [u8]>,
    pub(super) inputs: Vec<ValueInfo<'a>>,
    pub(super) outputs: Vec<ValueInfo<'a>>,
}

#[derive(Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) op_type: &'a str,
    pub(super) domain: &'a str,
    /// An empty name is an input that is left out.
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    /// The name of each attribute with its message.
    attributes: Vec<(&'a str, &'a [u8])>,
}

/// What an input or output is declared to be.
#[derive(Debug, Default)]
pub(super) struct ValueInfo<'a> {
    pub(super) name: &'a str,
    /// The number of `TensorProto.DataType`; 0 for what is no tensor.
    pub(super) element: i64,
    /// The axes, if they are declared; one without a length is of any length.
    pub(super) shape: Option<Vec<Option<usize>>>,
}

/// An attribute; only the field of its own type is filled.
#[derive(Debug, Default)]
pub(super) struct Attribute<'a> {
    float: f32,
    int: i64,
    text: &'a [u8],
    tensor: Option<&'a [u8]>,
    floats: Vec<f32>,
    ints: Vec<i64>,
    texts: Vec<&'a [u8]>,
}

impl<'a> Model<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut model = Self::default();
        let mut graph = None;
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                1 => model.ir_version = field.int()?,
                7 => graph = Some(Graph::parse(field.bytes()?)?),
                8 => model.opsets.push(opset(field.bytes()?)?),
                25 => return Err(unsupported("functions of its own")),
                _ => {}
            }
        }
        model.graph = graph.ok_or_else(|| malformed("there is no graph"))?;
        Ok(model)
    }
}

fn opset(bytes: &[u8]) -> Result<(&str, i64), Fault> {
    let (mut domain, mut version) = ("", 0);
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => domain = field.text()?,
            2 => version = field.int()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

impl<'a> Graph<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut graph = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                1 if graph.nodes.len() >= MAX_NODES => return Err(unsupported(format!("more than {MAX_NODES} nodes"))),
                1 => graph.nodes.push(Node::parse(field.bytes()?)?),
                5 => graph.initializers.push(field.bytes()?),
                11 => graph.inputs.push(ValueInfo::parse(field.bytes()?)?),
                12 => graph.outputs.push(ValueInfo::parse(field.bytes()?)?),
                15 => return Err(unsupported("sparse initializers")),
                _ => {}
            }
        }
        Ok(graph)
    }
}

impl<'a> Node<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut node = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                3 => node.name = field.text()?,
                4 => node.op_type = field.text()?,
                5 => node.attributes.push(named(field.bytes()?)?),
                7 => node.domain = field.text()?,
                _ => {}
            }
        }
        if node.op_type.is_empty() {
            return Err(malformed("a node has no operator"));
        }
        if node.domain == "ai.onnx" {
            node.domain = "";
        }
        Ok(node)
    }

    /// The operator with its domain and the node's name, for a message.
    pub(super) fn describe(&self) -> String {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { self.domain };
        format!("{domain}.{} (node {:?})", self.op_type, self.name)
    }

    fn attribute(&self, name: &str) -> Result<Option<Attribute<'a>>, Fault> {
        let found = self.attributes.iter().find(|(known, _)| *known == name);
        found.map(|(_, bytes)| Attribute::parse(bytes)).transpose()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attributes.iter().any(|(known, _)| *known == name)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, Fault> {
        Ok(self.attribute(name)?.map_or(default, |attribute| attribute.int))
    }

    pub(super) fn float(&self, name: &str, default: f32) -> Result<f32, Fault> {
        Ok(self.attribute(name)?.map_or(default, |attribute| attribute.float))
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> Result<&'a str, Fault> {
        match self.attribute(name)? {
            Some(attribute) => utf8(attribute.text),
            None => Ok(default),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Result<Vec<i64>, Fault> {
        Ok(self.attribute(name)?.unwrap_or_default().ints)
    }

    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, Fault> {
        Ok(self.attribute(name)?.unwrap_or_default().floats)
    }

    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>, Fault> {
        let attribute = self.attribute(name)?.unwrap_or_default();
        attribute.texts.into_iter().map(utf8).collect()
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<Value<'static>>, Fault> {
        let tensor = self.attribute(name)?.and_then(|attribute| attribute.tensor);
        tensor.map(|bytes| tensor_value(bytes).map(|(_, value)| value)).transpose()
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| malformed("a text is not UTF-8"))
}

fn named(bytes: &[u8]) -> Result<(&str, &[u8]), Fault> {
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        if number == 1 {
            return Ok((field.text()?, bytes));
        }
    }
    Err(malformed("an attribute has no name"))
}

impl<'a> Attribute<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut attribute = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                2 => match field {
                    Field::Fixed32(bytes) => attribute.float = f32::from_le_bytes(bytes),
                    _ => return Err(malformed("something else stands where a number is expected")),
                },
                3 => attribute.int = field.int()?,
                4 => attribute.text = field.bytes()?,
                5 => attribute.tensor = Some(field.bytes()?),
                7 => field.floats(&mut attribute.floats)?,
                8 => field.ints(&mut attribute.ints)?,
                9 => attribute.texts.push(field.bytes()?),
                21 => return Err(unsupported("attributes of functions")),
                _ => {}
            }
        }
        Ok(attribute)
    }
}

impl<'a> ValueInfo<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut info = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                1 => info.name = field.text()?,
                2 => info.read_type(field.bytes()?)?,
                _ => {}
            }
        }
        Ok(info)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), Fault> {
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            // Sequences and maps have other numbers, and stay without an element type.
            if number != 1 {
                continue;
            }
            let mut tensor = Fields(field.bytes()?);
            while let Some((number, field)) = tensor.next()? {
                match number {
                    1 => self.element = field.int()?,
                    2 => self.shape = Some(dims(field.bytes()?)?),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn dims(bytes: &[u8]) -> Result<Vec<Option<usize>>, Fault> {
    let mut dims = Vec::new();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        if number != 1 {
            continue;
        }
        let mut length = None;
        let mut dim = Fields(field.bytes()?);
        while let Some((number, field)) = dim.next()? {
            if number == 1 {
                // -1 and 0 are written for "any length" by some exporters.
                length = usize::try_from(field.int()?).ok().filter(|length| *length > 0);
            }
        }
        dims.push(length);
    }
    Ok(dims)
}

/// The numbers of `TensorProto.DataType` that are served.
pub(super) mod element {
    pub(crate) const FLOAT: i64 = 1;
    pub(crate) const INT32: i64 = 6;
    pub(crate) const INT64: i64 = 7;
    pub(crate) const STRING: i64 = 8;
    pub(crate) const BOOL: i64 = 9;
    pub(crate) const DOUBLE: i64 = 11;
}

/// A tensor of the file: its name, and what it holds.
pub(super) fn tensor_value(bytes: &[u8]) -> Result<(&str, Value<'static>), Fault> {
    let (mut name, mut element, mut dims) = ("", 0, Vec::new());
    let (mut floats, mut ints, mut longs, mut doubles, mut texts) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut raw = None;
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => field.ints(&mut dims)?,
            2 => element = field.int()?,
            4 => field.floats(&mut floats)?,
            5 => field.ints(&mut ints)?,
            6 => texts.push(field.text()?),
            7 => field.ints(&mut longs)?,
            8 => name = field.text()?,
            9 => raw = Some(field.bytes()?),
            10 => field.doubles(&mut doubles)?,
            13 => return Err(unsupported(format!("external data (tensor {name:?})"))),
            14 if field.int()? == 1 => return Err(unsupported(format!("external data (tensor {name:?})"))),
            _ => {}
        }
    }
    let dims = dims
        .into_iter()
        .map(|dim| usize::try_from(dim).map_err(|_| malformed(format!("tensor {name:?} has an axis of {dim}"))));
    let dims = dims.collect::<Result<Vec<_>, _>>()?;
    let buf = match (element, raw) {
        (element::FLOAT, Some(raw)) => Buf::F32(Slice::Owned(words(raw)?.map(f32::from_le_bytes).collect())),
        (element::FLOAT, None) => Buf::F32(Slice::Owned(floats)),
        (element::DOUBLE, Some(raw)) => Buf::F64(Slice::Owned(words(raw)?.map(f64::from_le_bytes).collect())),
        (element::DOUBLE, None) => Buf::F64(Slice::Owned(doubles)),
        (element::INT64, Some(raw)) => Buf::I64(Slice::Owned(words(raw)?.map(i64::from_le_bytes).collect())),
        (element::INT64, None) => Buf::I64(Slice::Owned(longs)),
        (element::INT32, Some(raw)) => Buf::I32(Slice::Owned(words(raw)?.map(i32::from_le_bytes).collect())),
        (element::INT32, None) => Buf::I32(Slice::Owned(ints.into_iter().map(|int| int as i32).collect())),
        (element::BOOL, Some(raw)) => Buf::Bool(Slice::Owned(raw.iter().map(|byte| *byte != 0).collect())),
        (element::BOOL, None) => Buf::Bool(Slice::Owned(ints.into_iter().map(|int| int != 0).collect())),
        (element::STRING, _) => Buf::Text(Slice::Owned(texts.into_iter().map(|text| text.to_owned().into()).collect())),
        (other, _) => return Err(unsupported(format!("the element type {other} (tensor {name:?})"))),
    };
    let value = Value { shape: Shape::new(&dims)?, buf };
    if value.shape.len() != value.buf.len() {
        return Err(malformed(format!("tensor {name:?} of shape {dims:?} has {} elements", value.buf.len())));
    }
    // A tensor of no elements may have axes of any length beside the one of none.
    Shape::within(&dims, value.buf.len().max(EMPTY_EXTENT)).map_err(|fault| fault.at(&format!("tensor {name:?}")))?;
    Ok((name, value))
}
