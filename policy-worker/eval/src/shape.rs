//! What a rule may read: the fields of a document, taken from its generated JSON Schema, so that a misspelt field is
//! an error when the policy is loaded and not a rule that never fires.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value as Json;

/// What is known of a value before it is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// Nothing.
    Any,
    Null,
    Bool,
    Number,
    Str,
    List(Arc<Shape>),
    /// Names that the schema does not know, one shape of value.
    Map(Arc<Shape>),
    /// Names that the schema knows.
    Object(Arc<Fields>),
}

/// The fields of an object.
pub(crate) type Fields = BTreeMap<String, Field>;

/// A field of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) shape: Shape,
    /// What stands for it when it is left out.
    pub(crate) default: Option<Json>,
}

impl Shape {
    /// The receipt, as `post` rules see it.
    pub(crate) fn receipt() -> Self {
        static SHAPE: LazyLock<Shape> =
            LazyLock::new(|| from_schema(&schemars::schema_for!(glasshouse_schema::Receipt)));
        SHAPE.clone()
    }

    /// What is asked for, as `pre` rules see it.
    pub(crate) fn request() -> Self {
        static SHAPE: LazyLock<Shape> =
            LazyLock::new(|| from_schema(&schemars::schema_for!(glasshouse_schema::admission::Admission)));
        SHAPE.clone()
    }

    /// What it is, for a message.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Any => "a value",
            Self::Null => "null",
            Self::Bool => "a bool",
            Self::Number => "a number",
            Self::Str => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Object(_) => "an object",
        }
    }

    /// Whether values of the two can be of one type.
    pub(crate) fn may_equal(&self, other: &Self) -> bool {
        use Shape::{Any, List, Map, Null, Object};
        match (self, other) {
            (Any | Null, _) | (_, Any | Null) => true,
            (List(left), List(right)) => left.may_equal(right),
            (Map(_) | Object(_), Map(_) | Object(_)) => true,
            (left, right) => std::mem::discriminant(left) == std::mem::discriminant(right),
        }
    }
}

fn from_schema(schema: &schemars::Schema) -> Shape {
    let root = schema.as_value();
    shape(root, root, 0)
}

fn shape(root: &Json, schema: &Json, depth: usize) -> Shape {
    // Our schemas are not recursive; this only keeps a future one from hanging us.
    if depth > 32 {
        return Shape::Any;
    }
    let next = |schema: &Json| shape(root, schema, depth + 1);
    if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
        return match reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
            Some(target) => next(target),
            None => Shape::Any,
        };
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(options) = schema.get(choice).and_then(Json::as_array) {
            // `Option<T>` is T or null; an enum is several strings.
            let mut shapes = options.iter().map(next).filter(|shape| *shape != Shape::Null);
            let first = shapes.next().unwrap_or(Shape::Any);
            return if shapes.all(|shape| shape == first) { first } else { Shape::Any };
        }
    }
    let kind = match schema.get("type") {
        Some(Json::String(kind)) => kind.as_str(),
        Some(Json::Array(kinds)) => {
            let mut kinds = kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null");
            match (kinds.next(), kinds.next()) {
                (Some(kind), None) => kind,
                _ => return Shape::Any,
            }
        }
        _ => return Shape::Any,
    };
    match kind {
        "null" => Shape::Null,
        "boolean" => Shape::Bool,
        "integer" | "number" => Shape::Number,
        "string" => Shape::Str,
        "array" => Shape::List(Arc::new(schema.get("items").map_or(Shape::Any, next))),
        "object" => match schema.get("properties").and_then(Json::as_object) {
            Some(properties) => {
                let required = schema.get("required").and_then(Json::as_array);
                let fields = properties.iter().map(|(name, property)| {
                    let required = required.is_some_and(|list| list.iter().any(|item| item == name));
                    let default = if required { None } else { default_of(root, property) };
                    (name.clone(), Field { shape: next(property), default })
                });
                Shape::Object(Arc::new(fields.collect()))
            }
            None => Shape::Map(Arc::new(schema.get("additionalProperties").map_or(Shape::Any, next))),
        },
        _ => Shape::Any,
    }
}

/// What a document leaves out when it is empty: our writers skip empty lists, zeros and `false`. A field that may be
/// `null` has no default: its absence is a fact that is not known.
fn default_of(root: &Json, property: &Json) -> Option<Json> {
    let target = match property.get("$ref").and_then(Json::as_str) {
        Some(reference) => root.pointer(reference.strip_prefix('#')?)?,
        None => property,
    };
    match target.get("type")?.as_str()? {
        "array" => Some(Json::Array(Vec::new())),
        "integer" => Some(Json::from(0)),
        "boolean" => Some(Json::Bool(false)),
        "object" if target.get("properties").is_none() => Some(Json::Object(serde_json::Map::new())),
        _ => None,
    }
}
