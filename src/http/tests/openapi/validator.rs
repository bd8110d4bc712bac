//! As much of JSON Schema as the document uses.

use serde_json::Value;

/// Whether a value is valid by a schema of this document. A keyword that is not known here is a panic, not a pass.
pub(super) fn is_valid(document: &Value, schema: &Value, value: &Value) -> bool {
    let schema = match schema {
        Value::Bool(verdict) => return *verdict,
        Value::Object(schema) => schema,
        other => panic!("no schema: {other}"),
    };
    let valid = |schema: &Value, value: &Value| is_valid(document, schema, value);
    let list = |keyword: &Value| keyword.as_array().expect("a list").clone();
    schema.iter().all(|(keyword, argument)| match keyword.as_str() {
        "$ref" => {
            let pointer = argument.as_str().and_then(|reference| reference.strip_prefix('#')).expect("a local one");
            valid(document.pointer(pointer).expect("it is there"), value)
        }
        "type" => match argument {
            Value::String(name) => is(name, value),
            names => list(names).iter().any(|name| is(name.as_str().expect("a name"), value)),
        },
        "const" => argument == value,
        "enum" => list(argument).contains(value),
        "anyOf" => list(argument).iter().any(|schema| valid(schema, value)),
        "oneOf" => list(argument).iter().filter(|schema| valid(schema, value)).count() == 1,
        "allOf" => list(argument).iter().all(|schema| valid(schema, value)),
        "required" => value
            .as_object()
            .is_none_or(|fields| list(argument).iter().all(|name| fields.contains_key(name.as_str().expect("a name")))),
        "properties" => value.as_object().is_none_or(|fields| {
            fields.iter().all(|(name, field)| argument.get(name).is_none_or(|schema| valid(schema, field)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|fields| {
            let known = |name: &String| schema.get("properties").is_some_and(|known| known.get(name).is_some());
            fields.iter().filter(|(name, _)| !known(name)).all(|(_, field)| valid(argument, field))
        }),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| valid(argument, item))),
        "maxProperties" => value.as_object().is_none_or(|fields| fields.len() as u64 <= number(argument)),
        "prefixItems" => value
            .as_array()
            .is_none_or(|items| list(argument).iter().zip(items).all(|(schema, item)| valid(schema, item))),
        "uniqueItems" => value.as_array().is_none_or(|items| {
            items.iter().enumerate().all(|(at, item)| items.iter().skip(at + 1).all(|other| other != item))
        }),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= number(argument)),
        "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= number(argument)),
        "minimum" => value.as_f64().is_none_or(|value| Some(value) >= argument.as_f64()),
        "maximum" => value.as_f64().is_none_or(|value| Some(value) <= argument.as_f64()),
        // Names and digests: what does not look like one is not tried.
        "pattern" | "description" | "format" | "title" | "default" | "examples" => true,
        other => panic!("{other} is not known"),
    })
}

fn number(argument: &Value) -> u64 {
    argument.as_u64().expect("a number")
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("{other} is no type"),
    }
}
