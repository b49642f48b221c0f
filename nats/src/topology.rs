//! The streams and buckets, as data: `nats/streams/*.toml`.
//!
//! [`Topology::apply`] creates what is missing and never changes what is there: an operator's setting is theirs, and a
//! stream that was "fixed" in silence is a stream whose data may be gone. A mismatch is a [`Difference`] for a person.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, RetentionPolicy, StorageType, SubjectTransform,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connect::Bus;
use crate::error::Error;
use crate::reserve::own_limit;

const FILES: [(&str, &str); 7] = [
    ("events.toml", include_str!("../streams/events.toml")),
    ("receipts.toml", include_str!("../streams/receipts.toml")),
    ("verdicts.toml", include_str!("../streams/verdicts.toml")),
    ("requests.toml", include_str!("../streams/requests.toml")),
    ("output.toml", include_str!("../streams/output.toml")),
    ("dead.toml", include_str!("../streams/dead.toml")),
    ("buckets.toml", include_str!("../streams/buckets.toml")),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    stream: Vec<StreamSpec>,
    #[serde(default)]
    key_value: Vec<KeyValueSpec>,
    #[serde(default)]
    object_store: Vec<ObjectStoreSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamSpec {
    name: String,
    description: String,
    subjects: Vec<String>,
    transform: Option<Transform>,
    #[serde(default)]
    retention: RetentionPolicy,
    discard: DiscardPolicy,
    #[serde(default)]
    discard_new_per_subject: bool,
    #[serde(default = "unlimited")]
    max_messages_per_subject: i64,
    max_bytes: i64,
    #[serde(default)]
    max_age_seconds: u64,
    max_message_bytes: i32,
    duplicate_window_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transform {
    source: String,
    destination: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValueSpec {
    name: String,
    description: String,
    #[serde(default = "one")]
    history: i64,
    max_bytes: i64,
    max_value_bytes: i32,
    #[serde(default)]
    max_age_seconds: u64,
    delete_marker_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectStoreSpec {
    name: String,
    description: String,
    max_bytes: i64,
    #[serde(default)]
    max_age_seconds: u64,
}

const fn unlimited() -> i64 {
    -1
}

const fn one() -> i64 {
    1
}

/// What every definition starts from: values as the server reports them, so that they compare equal.
fn base(name: String, description: String, replicas: usize) -> Config {
    Config {
        name,
        description: Some(description),
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        allow_direct: true,
        compression: Some(Compression::None),
        ..Config::default()
    }
}

impl StreamSpec {
    fn config(self, replicas: usize) -> Config {
        Config {
            subjects: self.subjects,
            subject_transform: self.transform.map(|transform| SubjectTransform {
                source: transform.source,
                destination: transform.destination,
            }),
            retention: self.retention,
            discard: self.discard,
            discard_new_per_subject: self.discard_new_per_subject,
            max_messages_per_subject: self.max_messages_per_subject,
            max_bytes: self.max_bytes,
            max_age: Duration::from_secs(self.max_age_seconds),
            max_message_size: self.max_message_bytes,
            duplicate_window: Duration::from_secs(self.duplicate_window_seconds),
            ..base(self.name, self.description, replicas)
        }
    }
}

/// The server's default, and no longer than the age limit, as it demands.
fn bucket_duplicate_window(max_age_seconds: u64) -> Duration {
    Duration::from_secs(if max_age_seconds == 0 { 120 } else { max_age_seconds.min(120) })
}

impl KeyValueSpec {
    /// The stream behind a bucket, as ADR-8 (JetStream based key-value stores) lays it out.
    fn config(self, replicas: usize) -> Config {
        Config {
            subjects: vec![format!("$KV.{}.>", self.name)],
            discard: DiscardPolicy::New,
            max_messages_per_subject: self.history,
            max_bytes: self.max_bytes,
            max_age: Duration::from_secs(self.max_age_seconds),
            max_message_size: self.max_value_bytes,
            duplicate_window: bucket_duplicate_window(self.max_age_seconds),
            allow_rollup: true,
            deny_delete: true,
            allow_message_ttl: self.delete_marker_seconds.is_some(),
            subject_delete_marker_ttl: self.delete_marker_seconds.map(Duration::from_secs),
            ..base(format!("KV_{}", self.name), self.description, replicas)
        }
    }
}

impl ObjectStoreSpec {
    /// The stream behind an object store, as ADR-20 (JetStream based object stores) lays it out.
    fn config(self, replicas: usize) -> Config {
        Config {
            subjects: vec![format!("$O.{}.C.>", self.name), format!("$O.{}.M.>", self.name)],
            discard: DiscardPolicy::New,
            max_bytes: self.max_bytes,
            max_age: Duration::from_secs(self.max_age_seconds),
            duplicate_window: bucket_duplicate_window(self.max_age_seconds),
            allow_rollup: true,
            ..base(format!("OBJ_{}", self.name), self.description, replicas)
        }
    }
}

/// Every stream and bucket that must exist.
#[derive(Debug, Clone)]
pub struct Topology {
    streams: Vec<Config>,
}

/// A setting that is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The stream (`KV_…` and `OBJ_…` are the streams behind buckets).
    pub stream: String,
    /// The setting, by its name in the JetStream API; `stream` when the whole stream is missing.
    pub field: String,
    /// What the definition says.
    pub wanted: String,
    /// What the server has.
    pub found: String,
}

impl Difference {
    /// Whether the whole stream is missing, which [`Topology::apply`] repairs.
    pub fn is_missing(&self) -> bool {
        self.field == MISSING_FIELD
    }
}

const MISSING_FIELD: &str = "stream";

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, field, wanted, found } = self;
        match self.is_missing() {
            true => write!(f, "{stream}: missing"),
            false => write!(f, "{stream}: {field}: wanted {wanted}, found {found}"),
        }
    }
}

/// What [`Topology::apply`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Applied {
    /// The streams it created.
    pub created: Vec<String>,
    /// What is not as wanted and was left alone.
    pub differences: Vec<Difference>,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.created {
            writeln!(f, "{name}: created")?;
        }
        for difference in &self.differences {
            writeln!(f, "{difference} (left as it is)")?;
        }
        if self.created.is_empty() && self.differences.is_empty() {
            writeln!(f, "nothing to do: every stream and bucket is there and as defined")?;
        }
        Ok(())
    }
}

impl Topology {
    /// The definitions that this binary carries. More than one replica needs a NATS cluster.
    pub fn embedded(replicas: usize) -> Result<Self, Error> {
        Self::parse(FILES.map(|(name, text)| (name.to_owned(), text.to_owned())), replicas)
    }

    /// An operator's own definitions: every `*.toml` of a directory, in the form of `nats/streams/`.
    pub fn from_dir(dir: &Path, replicas: usize) -> Result<Self, Error> {
        let unreadable = |error: std::io::Error| Error::Topology {
            file: dir.display().to_string(),
            problem: error.to_string(),
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push((path.display().to_string(), std::fs::read_to_string(&path).map_err(unreadable)?));
            }
        }
        files.sort();
        Self::parse(files, replicas)
    }

    fn parse(files: impl IntoIterator<Item = (String, String)>, replicas: usize) -> Result<Self, Error> {
        let mut streams = Vec::new();
        let mut names = BTreeSet::new();
        for (name, text) in files {
            let file: File = toml::from_str(&text)
                .map_err(|error| Error::Topology { file: name.clone(), problem: error.to_string() })?;
            let configs = (file.stream.into_iter().map(|spec| spec.config(replicas)))
                .chain(file.key_value.into_iter().map(|spec| spec.config(replicas)))
                .chain(file.object_store.into_iter().map(|spec| spec.config(replicas)));
            for config in configs {
                if !names.insert(config.name.clone()) {
                    let problem = format!("{} is defined twice", config.name);
                    return Err(Error::Topology { file: name, problem });
                }
                streams.push(config);
            }
        }
        Ok(Self { streams })
    }

    /// The names of the streams, those behind buckets included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.streams.iter().map(|config| config.name.as_str())
    }

    /// How much file storage the streams reserve together on each server that holds a replica.
    pub fn reserved_bytes(&self) -> u64 {
        self.streams.iter().filter_map(|config| u64::try_from(config.max_bytes).ok()).sum()
    }

    /// What is missing or not as wanted; changes nothing.
    pub async fn check(&self, bus: &Bus) -> Result<Vec<Difference>, Error> {
        let mut differences = Vec::new();
        for wanted in &self.streams {
            match find(bus, &wanted.name).await? {
                Some(found) => differences.extend(compare(wanted, &found)?),
                None => differences.push(Difference {
                    stream: wanted.name.clone(),
                    field: MISSING_FIELD.into(),
                    wanted: "present".into(),
                    found: "missing".into(),
                }),
            }
        }
        Ok(differences)
    }

    /// Creates what is missing; what is there is never changed.
    pub async fn apply(&self, bus: &Bus) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        for wanted in &self.streams {
            if find(bus, &wanted.name).await?.is_none() {
                match bus.jetstream().create_stream(wanted).await {
                    Ok(_) => applied.created.push(wanted.name.clone()),
                    // Somebody else was faster, with other settings: theirs are compared below.
                    Err(error) if already_exists(&error) => {}
                    Err(error) => return Err(Error::broker("create stream", &wanted.name, error)),
                }
            }
        }
        applied.differences = self.check(bus).await?;
        Ok(applied)
    }
}

fn already_exists(error: &async_nats::jetstream::context::CreateStreamError) -> bool {
    use async_nats::jetstream::context::CreateStreamErrorKind as Kind;
    matches!(error.kind(), Kind::JetStream(server) if server.error_code() == ErrorCode::STREAM_NAME_EXIST)
}

async fn find(bus: &Bus, name: &str) -> Result<Option<Config>, Error> {
    match bus.jetstream().get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(server) if server.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(None)
            }
            _ => Err(Error::broker("look up stream", name, error)),
        },
    }
}

/// The settings in which two configurations differ. Both are compared whole, so that a setting which the definition leaves
/// at its default and somebody turned on is a difference too.
fn compare(wanted: &Config, found: &Config) -> Result<Vec<Difference>, Error> {
    let as_json = |config: &Config| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::Topology { file: config.name.clone(), problem: "not an object".into() }),
        Err(error) => Err(Error::Topology { file: config.name.clone(), problem: error.to_string() }),
    };
    // Room that is lent for a while is nobody's setting.
    let found = Config { max_bytes: own_limit(found), ..found.clone() };
    let (wanted_fields, found_fields) = (as_json(wanted)?, as_json(&found)?);
    let names: BTreeSet<&String> = wanted_fields.keys().chain(found_fields.keys()).collect();
    Ok(names
        .into_iter()
        // Words for people, and what the server adds about itself.
        .filter(|field| !matches!(field.as_str(), "description" | "metadata" | "placement"))
        .filter_map(|field| {
            let wanted_text = show(field, wanted_fields.get(field));
            let found_text = show(field, found_fields.get(field));
            (wanted_text != found_text).then(|| Difference {
                stream: wanted.name.clone(),
                field: field.clone(),
                wanted: wanted_text,
                found: found_text,
            })
        })
        .collect())
}

/// A setting for a person; absent and default are the same thing in the JetStream API.
fn show(field: &str, value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => "off".into(),
        Some(Value::Bool(true)) => "on".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match (field, number.as_u64()) {
            (_, Some(0)) => "off".into(),
            ("max_age" | "duplicate_window" | "subject_delete_marker_ttl", Some(nanoseconds)) => {
                format!("{:?}", Duration::from_nanos(nanoseconds))
            }
            _ => number.to_string(),
        },
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_definitions_are_complete() {
        let topology = Topology::embedded(1).unwrap();
        let names: Vec<&str> = topology.names().collect();
        for name in [
            crate::EVENTS,
            crate::RECEIPTS,
            crate::VERDICTS,
            crate::REQUESTS,
            crate::OUTPUT,
            crate::DEAD,
            "KV_GH_CLAIMS",
            "KV_GH_CHECKPOINTS",
            "KV_GH_LEASES",
            "KV_GH_NODES",
            "KV_GH_POLICIES",
            "OBJ_GH_BODIES",
            "OBJ_GH_FILES",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 13);
        let gib = topology.reserved_bytes() as f64 / f64::from(1 << 30);
        assert!(gib < 14.0, "the operators' example configuration says 13.2 GiB, and it is {gib}");
    }

    #[test]
    fn a_definition_with_a_mistake_is_refused_with_its_place() {
        let broken = "[[stream]]\nname = \"X\"\ncolour = 1\n";
        let error = Topology::parse([("x.toml".to_owned(), broken.to_owned())], 1).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("x.toml") && text.contains("colour"), "{text}");

        let twice = include_str!("../streams/dead.toml").to_owned();
        let files = [("a.toml".to_owned(), twice.clone()), ("b.toml".to_owned(), twice)];
        assert!(Topology::parse(files, 1).unwrap_err().to_string().contains("defined twice"));
    }

    #[test]
    fn a_setting_that_somebody_turned_on_is_a_difference() {
        let wanted = base("S".into(), String::new(), 1);
        let found = Config { deny_purge: true, max_age: Duration::from_secs(60), ..wanted.clone() };
        let differences = compare(&wanted, &found).unwrap();
        let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["S: deny_purge: wanted off, found on", "S: max_age: wanted off, found 60s"]);
    }
}
