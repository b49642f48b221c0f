//! The rules of these tests against the published definition, where `GLASSHOUSE_FIRECRACKER_API` names the file.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rules::{Kind, Object, RULES, Rule};

#[test]
fn the_rules_are_those_that_are_published() {
    let Some(path) = std::env::var_os("GLASSHOUSE_FIRECRACKER_API") else {
        println!("skipped: GLASSHOUSE_FIRECRACKER_API names no src/firecracker/swagger/firecracker.yaml");
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    // `Off` is a log level there and no boolean.
    let options = serde_saphyr::options! { strict_booleans: true };
    let api: Value = serde_saphyr::from_str_with_options(&text, options).unwrap();
    for Rule { method, path, body, .. } in RULES {
        let operation = &api["paths"][path][method];
        let reference = format!("#/definitions/{}", body.definition);
        let bodies = operation["parameters"].as_array().unwrap_or_else(|| panic!("no {method} {path}"));
        assert!(bodies.iter().any(|one| one["schema"]["$ref"] == reference.as_str()), "{method} {path}");
        assert!(operation["responses"]["204"].is_object(), "{method} {path} is answered otherwise");
        compare(&api, body);
    }
}

fn compare(api: &Value, object: &Object) {
    let definition = &api["definitions"][object.definition];
    let name = object.definition;
    let texts = |value: &Value| -> BTreeSet<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let ours = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(texts(&definition["required"]), ours(object.required), "{name}: required");
    let published: BTreeSet<String> = definition["properties"].as_object().unwrap().keys().cloned().collect();
    let known: Vec<&str> = object.fields.iter().map(|(field, _)| *field).collect();
    assert_eq!(published, ours(&known), "{name}: fields");
    for (field, kind) in object.fields {
        let property = &definition["properties"][field];
        let of_type = |expected: &str| assert_eq!(property["type"], expected, "{name}.{field}");
        match kind {
            Kind::Text => of_type("string"),
            Kind::Flag => of_type("boolean"),
            Kind::Number { minimum, maximum } => {
                of_type("integer");
                assert_eq!(property["minimum"].as_i64().unwrap_or(0), *minimum, "{name}.{field}");
                assert_eq!(property["maximum"].as_i64().unwrap_or(i64::MAX), *maximum, "{name}.{field}");
            }
            Kind::OneOf(all) => assert_eq!(texts(&property["enum"]), ours(all), "{name}.{field}"),
            Kind::Object(object) => {
                let reference = format!("#/definitions/{}", object.definition);
                assert_eq!(property["$ref"], reference.as_str(), "{name}.{field}");
                compare(api, object);
            }
            Kind::Unused => {}
        }
    }
}
