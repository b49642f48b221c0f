//! JSON Schemas of every JSON document, generated from the types. `schema/json/` holds them committed; a test fails
//! when they differ, and `GLASSHOUSE_BLESS=1 cargo test -p glasshouse-schema` writes them anew.

use schemars::Schema;

/// The file name and the schema of every JSON document.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("receipt.schema.json", schemars::schema_for!(crate::receipt::Receipt)),
        ("verdict.schema.json", schemars::schema_for!(crate::verdict::Verdict)),
        ("lifecycle.schema.json", schemars::schema_for!(crate::lifecycle::LifecycleEvent)),
        ("dead-letter.schema.json", schemars::schema_for!(crate::dead::DeadLetter)),
        ("request.schema.json", schemars::schema_for!(crate::request::Request)),
        ("node-status.schema.json", schemars::schema_for!(crate::node::NodeStatus)),
    ]
}
