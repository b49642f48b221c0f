//! What the API takes, as its definition says: src/firecracker/swagger/firecracker.yaml of Firecracker 1.17.0-dev (commit
//! 81b38b9d). Only paths that the client uses. `published.rs` compares this with the definition itself.

use serde_json::Value;

/// What a field may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Text,
    Flag,
    Number {
        minimum: i64,
        maximum: i64,
    },
    OneOf(&'static [&'static str]),
    Object(&'static Object),
    /// Not used by the client; a test that meets it fails.
    Unused,
}

#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) definition: &'static str,
    pub(crate) required: &'static [&'static str],
    pub(crate) fields: &'static [(&'static str, Kind)],
}

/// When a request is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    BeforeStart,
    AfterStart,
    Always,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) method: &'static str,
    /// The last part of a path may be a name: `{drive_id}` has to be what the field of that name says.
    pub(crate) path: &'static str,
    pub(crate) when: When,
    pub(crate) body: &'static Object,
}

const ANY: Kind = Kind::Number { minimum: 0, maximum: i64::MAX };

const BOOT_SOURCE: Object = Object {
    definition: "BootSource",
    required: &["kernel_image_path"],
    fields: &[("boot_args", Kind::Text), ("initrd_path", Kind::Text), ("kernel_image_path", Kind::Text)],
};
const MACHINE: Object = Object {
    definition: "MachineConfiguration",
    required: &["mem_size_mib", "vcpu_count"],
    fields: &[
        ("cpu_template", Kind::Unused),
        ("smt", Kind::Flag),
        ("mem_size_mib", ANY),
        ("track_dirty_pages", Kind::Flag),
        ("vcpu_count", Kind::Number { minimum: 1, maximum: 32 }),
        ("huge_pages", Kind::OneOf(&["None", "Transparent", "2M"])),
    ],
};
const DRIVE: Object = Object {
    definition: "Drive",
    required: &["drive_id", "is_root_device"],
    fields: &[
        ("drive_id", Kind::Text),
        ("partuuid", Kind::Text),
        ("is_root_device", Kind::Flag),
        ("cache_type", Kind::OneOf(&["Unsafe", "Writeback"])),
        ("is_read_only", Kind::Flag),
        ("path_on_host", Kind::Text),
        ("rate_limiter", Kind::Unused),
        ("io_engine", Kind::OneOf(&["Sync", "Async"])),
        ("socket", Kind::Text),
    ],
};
const NETWORK: Object = Object {
    definition: "NetworkInterface",
    required: &["host_dev_name", "iface_id"],
    fields: &[
        ("guest_mac", Kind::Text),
        ("host_dev_name", Kind::Text),
        ("iface_id", Kind::Text),
        ("mtu", Kind::Number { minimum: 68, maximum: 65_535 }),
        ("rx_rate_limiter", Kind::Unused),
        ("tx_rate_limiter", Kind::Unused),
    ],
};
const VSOCK: Object = Object {
    definition: "Vsock",
    required: &["guest_cid", "uds_path"],
    fields: &[
        ("guest_cid", Kind::Number { minimum: 3, maximum: i64::MAX }),
        ("uds_path", Kind::Text),
        ("vsock_id", Kind::Text),
    ],
};
const ENTROPY: Object =
    Object { definition: "EntropyDevice", required: &[], fields: &[("rate_limiter", Kind::Unused)] };
const SERIAL: Object = Object {
    definition: "SerialDevice",
    required: &[],
    fields: &[("serial_out_path", Kind::Text), ("rate_limiter", Kind::Unused)],
};
const LOGGER: Object = Object {
    definition: "Logger",
    required: &[],
    fields: &[
        ("level", Kind::OneOf(&["Error", "Warning", "Info", "Debug", "Trace", "Off"])),
        ("log_path", Kind::Text),
        ("show_level", Kind::Flag),
        ("show_log_origin", Kind::Flag),
        ("module", Kind::Text),
    ],
};
const METRICS: Object = Object {
    definition: "Metrics",
    required: &["metrics_path"],
    fields: &[("metrics_path", Kind::Text), ("emit_id", Kind::Flag), ("properties", Kind::Unused)],
};
const ACTION: Object = Object {
    definition: "InstanceActionInfo",
    required: &["action_type"],
    fields: &[("action_type", Kind::OneOf(&["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]))],
};
const VM: Object = Object {
    definition: "Vm",
    required: &["state"],
    fields: &[("state", Kind::OneOf(&["Paused", "Resumed"]))],
};
const CREATE: Object = Object {
    definition: "SnapshotCreateParams",
    required: &["mem_file_path", "snapshot_path"],
    fields: &[
        ("mem_file_path", Kind::Text),
        ("snapshot_path", Kind::Text),
        ("snapshot_type", Kind::OneOf(&["Full", "Diff"])),
    ],
};
const MEMORY: Object = Object {
    definition: "MemoryBackend",
    required: &["backend_type", "backend_path"],
    fields: &[("backend_type", Kind::OneOf(&["File", "Uffd"])), ("backend_path", Kind::Text)],
};
const OVERRIDE: Object =
    Object { definition: "VsockOverride", required: &["uds_path"], fields: &[("uds_path", Kind::Text)] };
const LOAD: Object = Object {
    definition: "SnapshotLoadParams",
    required: &["snapshot_path"],
    fields: &[
        // Deprecated.
        ("enable_diff_snapshots", Kind::Unused),
        ("mem_file_path", Kind::Unused),
        ("track_dirty_pages", Kind::Flag),
        ("mem_backend", Kind::Object(&MEMORY)),
        ("snapshot_path", Kind::Text),
        ("resume_vm", Kind::Flag),
        ("network_overrides", Kind::Unused),
        ("vsock_override", Kind::Object(&OVERRIDE)),
        ("clock_realtime", Kind::Flag),
        ("huge_pages", Kind::OneOf(&["Snapshot", "None", "Transparent", "2M"])),
    ],
};

pub(crate) const RULES: &[Rule] = &[
    Rule { method: "put", path: "/boot-source", when: When::BeforeStart, body: &BOOT_SOURCE },
    Rule { method: "put", path: "/machine-config", when: When::BeforeStart, body: &MACHINE },
    Rule { method: "put", path: "/drives/{drive_id}", when: When::BeforeStart, body: &DRIVE },
    Rule { method: "put", path: "/network-interfaces/{iface_id}", when: When::BeforeStart, body: &NETWORK },
    Rule { method: "put", path: "/vsock", when: When::BeforeStart, body: &VSOCK },
    Rule { method: "put", path: "/entropy", when: When::BeforeStart, body: &ENTROPY },
    Rule { method: "put", path: "/serial", when: When::BeforeStart, body: &SERIAL },
    Rule { method: "put", path: "/logger", when: When::BeforeStart, body: &LOGGER },
    Rule { method: "put", path: "/metrics", when: When::BeforeStart, body: &METRICS },
    Rule { method: "put", path: "/actions", when: When::Always, body: &ACTION },
    Rule { method: "patch", path: "/vm", when: When::AfterStart, body: &VM },
    Rule { method: "put", path: "/snapshot/create", when: When::AfterStart, body: &CREATE },
    Rule { method: "put", path: "/snapshot/load", when: When::BeforeStart, body: &LOAD },
];

impl Object {
    /// What is wrong with a body, field by field.
    pub(crate) fn check(&self, body: &Value) -> Result<(), String> {
        let body = body.as_object().ok_or_else(|| format!("{} is no object", self.definition))?;
        for name in self.required {
            if !body.contains_key(*name) {
                return Err(format!("{}: missing field `{name}`", self.definition));
            }
        }
        for (name, value) in body {
            let kind = self.fields.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
            let fits = match kind.ok_or_else(|| format!("{}: unknown field `{name}`", self.definition))? {
                Kind::Text => value.is_string(),
                Kind::Flag => value.is_boolean(),
                Kind::Number { minimum, maximum } => {
                    value.as_i64().is_some_and(|number| (minimum..=maximum).contains(&number))
                }
                Kind::OneOf(all) => value.as_str().is_some_and(|text| all.contains(&text)),
                Kind::Object(object) => {
                    object.check(value)?;
                    true
                }
                Kind::Unused => false,
            };
            if !fits {
                return Err(format!("{}: field `{name}` cannot be {value}", self.definition));
            }
        }
        Ok(())
    }
}
