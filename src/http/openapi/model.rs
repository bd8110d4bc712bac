//! What one model takes and gives, from its signature: every form of a body that `/predict` reads.

use hotserve_models::{DataType, Dim, Signature, TensorSpec};
use serde_json::{Map, Value, json};

/// How many values an example's row may have: a picture is no example.
const EXAMPLE: usize = 256;

/// So many inputs or outputs are described of any model.
const FEW: usize = 4;

/// What may still be described by name.
pub(super) struct Room {
    /// The columns of inputs.
    pub(super) features: usize,
    /// Inputs and outputs.
    pub(super) tensors: usize,
}

impl Room {
    /// Takes room for all these, if there is.
    fn take(&mut self, specs: &[TensorSpec]) -> bool {
        // A usual model always has.
        if specs.len() <= FEW {
            return true;
        }
        let left = self.tensors.checked_sub(specs.len());
        left.map(|left| self.tensors = left).is_some()
    }
}

/// A model's bodies.
pub(super) struct Described {
    /// The forms of a list of rows, which several fields may have: a schema of its own.
    pub(super) rows: Value,
    /// What it takes.
    pub(super) request: Value,
    /// Bodies that it takes, by the name of their form.
    pub(super) examples: Map<String, Value>,
    /// The inputs of a row, as the Open Inference Protocol has them; none where a row is no example.
    pub(super) tensors: Option<Value>,
    /// One row's answer.
    pub(super) prediction: Value,
    /// Whether its inputs are described by name, or are too many.
    pub(super) inputs_named: bool,
    /// The same of its outputs.
    pub(super) outputs_named: bool,
}

impl Described {
    /// Of a model with this signature, where `rows` refers to the schema of its rows. Takes room for the names it writes.
    pub(super) fn new(signature: &Signature, rows: &str, room: &mut Room) -> Self {
        let (inputs_named, outputs_named) = (room.take(&signature.inputs), room.take(&signature.outputs));
        let prediction = if outputs_named { prediction(signature) } else { json!({ "type": "object" }) };
        if !inputs_named {
            let text = "By input name: there are too many to list them here, /models has them";
            return Self {
                rows: json!({ "description": text, "type": "array", "items": { "type": "object" } }),
                request: json!({ "description": text, "type": ["object", "array"] }),
                examples: Map::new(),
                tensors: None,
                prediction,
                inputs_named,
                outputs_named,
            };
        }
        let reference = json!({ "$ref": rows });
        let inputs: Vec<Input<'_>> = signature.inputs.iter().map(|spec| Input::new(spec, &mut room.features)).collect();
        let (instances, columns) = match inputs.as_slice() {
            [input] => (input.instances(), input.batch()),
            inputs => (
                json!({ "type": "array", "items": object(inputs.iter().map(|input| (input.name(), any_of(input.rows())))) }),
                object(inputs.iter().map(|input| (input.name(), any_of(input.columns())))),
            ),
        };
        let table = table(&inputs);
        let mut forms = vec![
            with_ignored(&[("instances", reference.clone())]),
            with_ignored(&[("inputs", columns)]),
            with_ignored(&[("dataframe_records", reference.clone())]),
        ];
        if let Some((columns, data)) = table {
            let fields = [("columns", columns), ("data", data)];
            forms.push(with_ignored(&[("dataframe_split", table_object(&fields))]));
            forms.push(with_ignored(&fields));
        }
        forms.push(reference);
        let request = json!({ "anyOf": forms });
        let row = Row::new(&inputs);
        let (examples, tensors) = (row.as_ref().map(Row::bodies).unwrap_or_default(), row.as_ref().map(Row::tensors));
        Self { rows: instances, request, examples, tensors, prediction, inputs_named, outputs_named }
    }
}

/// An object with these fields, and what clients of other servers send along: nothing depends on it.
fn with_ignored(fields: &[(&str, Value)]) -> Value {
    let mut schema = object(fields.iter().map(|(name, schema)| (*name, schema.clone())));
    for ignored in ["signature_name", "id", "parameters", "index"] {
        schema["properties"][ignored] = Value::Bool(true);
    }
    // To predict without what was asked for would be to answer something else.
    schema["properties"]["params"] = json!({ "type": ["object", "null"], "maxProperties": 0 });
    schema
}

/// A table as pandas writes it.
fn table_object(fields: &[(&str, Value)]) -> Value {
    let mut schema = object(fields.iter().map(|(name, schema)| (*name, schema.clone())));
    for ignored in ["index", "index_names", "column_names"] {
        schema["properties"][ignored] = Value::Bool(true);
    }
    schema
}

/// The columns of a table, and its rows; nothing where the columns have no names, or very many.
///
/// Columns may come in any order; where they are of different datatypes, that of the model is shown.
fn table(inputs: &[Input<'_>]) -> Option<(Value, Value)> {
    match inputs {
        [input] if input.wide => None,
        [input] => {
            let rank = input.spec.shape.len();
            let mut columns = match input.features {
                // Whatever they are called, they are taken in their order, or by their numbers.
                [] if rank <= 2 => json!({ "type": "array", "items": { "type": ["string", "integer"] } }),
                [] => json!({ "type": "array", "items": { "const": input.name() } }),
                names => json!({ "type": "array", "items": { "enum": names }, "uniqueItems": true }),
            };
            let width = match input.spec.shape.as_slice() {
                [_, Dim::Any] if input.features.is_empty() => None,
                [_, Dim::Any] => Some(input.features.len()),
                [_, Dim::Fixed(width)] => Some(*width),
                _ => Some(1),
            };
            if let Some(width) = width {
                columns["minItems"] = width.into();
                columns["maxItems"] = width.into();
            }
            let row = if rank == 2 { input.bare() } else { nested(&[Dim::Fixed(1)], input.bare()) };
            Some((columns, list(row)))
        }
        inputs => {
            let names: Vec<&str> = inputs.iter().map(Input::name).collect();
            let row = json!({
                "type": "array", "prefixItems": inputs.iter().map(Input::value).collect::<Vec<_>>(),
                "minItems": names.len(), "maxItems": names.len(),
            });
            Some((json!({ "const": names }), list(row)))
        }
    }
}

/// One input, and the names of its columns where rows may come by them.
struct Input<'s> {
    spec: &'s TensorSpec,
    features: &'s [String],
    /// The columns have names, and more of them than are written out.
    wide: bool,
}

impl<'s> Input<'s> {
    fn new(spec: &'s TensorSpec, budget: &mut usize) -> Self {
        let named = match spec.shape.as_slice() {
            [_, Dim::Fixed(width)] => *width == spec.features.len(),
            [_, Dim::Any] => true,
            _ => false,
        };
        let all: &[String] = if named { &spec.features } else { &[] };
        let wide = all.len() > *budget;
        let features = if wide { &[] } else { all };
        *budget -= features.len();
        Self { spec, features, wide }
    }

    fn name(&self) -> &str {
        &self.spec.name
    }

    fn element(&self) -> Value {
        element(self.spec.datatype)
    }

    /// A row as nested lists.
    fn bare(&self) -> Value {
        nested(self.spec.shape.get(1..).unwrap_or_default(), self.element())
    }

    /// A row that is a list of one value may be that value.
    fn sole_value(&self) -> Option<Value> {
        matches!(self.spec.shape.as_slice(), [_, Dim::Fixed(1)]).then(|| self.element())
    }

    /// A row as one value of a table.
    fn value(&self) -> Value {
        any_of([Some(self.bare()), self.sole_value()].into_iter().flatten().collect())
    }

    /// A row by feature name.
    fn by_feature(&self) -> Option<Value> {
        if self.wide {
            let text = "By feature name: there are too many to list them here, /models has them";
            return Some(json!({ "type": "object", "description": text, "additionalProperties": self.element() }));
        }
        let names = self.features.iter().map(|name| (name.as_str(), self.element()));
        (!self.features.is_empty()).then(|| object(names))
    }

    /// The forms of a row.
    fn rows(&self) -> Vec<Value> {
        [Some(self.bare()), self.sole_value(), self.by_feature()].into_iter().flatten().collect()
    }

    /// The forms of all rows together, the first axis outside.
    fn columns(&self) -> Vec<Value> {
        let column = json!({ "type": "array", "items": self.element() });
        let by_feature = if self.wide {
            Some(json!({ "type": "object", "additionalProperties": column }))
        } else {
            let names = self.features.iter().map(|name| (name.as_str(), column.clone()));
            (!self.features.is_empty()).then(|| object(names))
        };
        self.rows().into_iter().map(list).chain(by_feature).collect()
    }

    /// The list of rows of a sole input: rows of one form, not mixed.
    fn instances(&self) -> Value {
        let named = object([(self.name(), any_of(self.rows()))]);
        any_of(self.rows().into_iter().chain([named]).map(list).collect())
    }

    /// What `inputs` may be for a sole input.
    fn batch(&self) -> Value {
        let named = object([(self.name(), any_of(self.columns()))]);
        // Where a row is a bare value, the list of all is a list of values.
        let lists = self.spec.shape.len() > 1;
        let rows = lists.then(|| list(object([(self.name(), any_of(self.rows()))])));
        any_of(self.columns().into_iter().chain(rows).chain([named]).collect())
    }
}

fn element(datatype: DataType) -> Value {
    json!({ "$ref": format!("#/components/schemas/{datatype}") })
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// Lists nested as deep as there are axes.
fn nested(axes: &[Dim], element: Value) -> Value {
    axes.iter().rev().fold(element, |items, axis| match axis {
        Dim::Any => list(items),
        Dim::Fixed(length) => json!({ "type": "array", "items": items, "minItems": length, "maxItems": length }),
    })
}

/// An object with just these fields.
fn object<'n>(fields: impl IntoIterator<Item = (&'n str, Value)>) -> Value {
    let fields: Map<String, Value> = fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    let names: Vec<&String> = fields.keys().collect();
    json!({ "type": "object", "required": names, "properties": fields, "additionalProperties": false })
}

fn any_of(mut forms: Vec<Value>) -> Value {
    if forms.len() == 1 { forms.swap_remove(0) } else { json!({ "anyOf": forms }) }
}

/// One row's answer: a bare value with one output, an object by output name with several.
fn prediction(signature: &Signature) -> Value {
    let value = |spec: &TensorSpec| nested(spec.shape.get(1..).unwrap_or_default(), element(spec.datatype));
    match signature.outputs.as_slice() {
        [output] => value(output),
        outputs => object(outputs.iter().map(|output| (output.name.as_str(), value(output)))),
    }
}

/// A row that is made up: a value of the right type for each feature.
struct Row<'i, 's> {
    inputs: &'i [Input<'s>],
    /// What each input has, as nested lists.
    values: Vec<Value>,
    /// And how long the lists are.
    lengths: Vec<Vec<usize>>,
}

impl<'i, 's> Row<'i, 's> {
    /// Nothing where a row has very many values.
    fn new(inputs: &'i [Input<'s>]) -> Option<Self> {
        let lengths = |input: &Input<'_>| {
            // As many as there are names, else one.
            let any = input.features.len().max(1);
            let length = |axis: &Dim| if let Dim::Fixed(length) = axis { *length } else { any };
            let lengths: Vec<usize> = input.spec.shape.iter().skip(1).map(length).collect();
            let all = lengths.iter().try_fold(1_usize, |all, length| all.checked_mul(*length));
            all.filter(|all| *all <= EXAMPLE).map(|_| lengths)
        };
        let lengths = inputs.iter().map(lengths).collect::<Option<Vec<_>>>()?;
        let values: usize = lengths.iter().map(|lengths| lengths.iter().product::<usize>()).sum();
        if values > EXAMPLE {
            return None;
        }
        let filled = |(input, lengths): (&Input<'_>, &Vec<usize>)| filled(input.spec.datatype, lengths, &mut 0);
        let values = inputs.iter().zip(&lengths).map(filled).collect();
        Some(Self { inputs, values, lengths })
    }

    /// Bodies with it, by the name of their form.
    fn bodies(&self) -> Map<String, Value> {
        let mut bodies = Map::new();
        let mut add = |form: &str, text: &str, body: Value| {
            bodies.insert(form.to_owned(), json!({ "summary": text, "value": body }));
        };
        let by_name = |names: &[&str], values: &[Value], wrap: fn(&Value) -> Value| -> Map<String, Value> {
            names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), wrap(value))).collect()
        };
        let column = |value: &Value| json!([value]);
        match (self.inputs, self.values.as_slice()) {
            ([input], [row]) => {
                add("rows", "Rows as lists", json!({ "instances": [row] }));
                let names: Vec<&str> = input.features.iter().map(String::as_str).collect();
                if let (false, Value::Array(values)) = (names.is_empty(), row) {
                    let named = by_name(&names, values, Value::clone);
                    add("by_name", "Rows by feature name", json!({ "instances": [named] }));
                    add("columns", "Columns by feature name", json!({ "inputs": by_name(&names, values, column) }));
                    let table = json!({ "columns": names, "data": [row] });
                    add("table", "A table, as pandas and MLflow write it", json!({ "dataframe_split": table }));
                }
            }
            (inputs, values) => {
                let names: Vec<&str> = inputs.iter().map(Input::name).collect();
                let named = by_name(&names, values, Value::clone);
                add("by_name", "Rows by input name", json!({ "instances": [named] }));
                add("columns", "All rows, by input name", json!({ "inputs": by_name(&names, values, column) }));
            }
        }
        bodies
    }

    /// Its tensors, flat.
    fn tensors(&self) -> Value {
        let tensor = |((input, value), lengths): ((&Input<'_>, &Value), &Vec<usize>)| {
            let shape: Vec<usize> = std::iter::once(1).chain(lengths.iter().copied()).collect();
            let mut data = Vec::new();
            flatten(value, &mut data);
            json!({ "name": input.name(), "datatype": input.spec.datatype, "shape": shape, "data": data })
        };
        self.inputs.iter().zip(&self.values).zip(&self.lengths).map(tensor).collect()
    }
}

fn flatten(value: &Value, flat: &mut Vec<Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| flatten(value, flat)),
        value => flat.push(value.clone()),
    }
}

/// A value, or lists of values.
fn filled(datatype: DataType, lengths: &[usize], next: &mut u8) -> Value {
    match lengths.split_first() {
        Some((length, inner)) => (0..*length).map(|_| filled(datatype, inner, next)).collect(),
        None => {
            *next = *next % 9 + 1;
            match datatype {
                DataType::Bool => json!(true),
                DataType::Int32 | DataType::Int64 => json!(next),
                DataType::Fp32 | DataType::Fp64 => json!(f64::from(*next) - 0.5),
                DataType::Bytes => json!("text"),
            }
        }
    }
}
