//! What a receipt does not know, per class of facts, and why.
//!
//! A class is *open* when facts of it may be missing. Presence is proven all the same: what stands in the receipt
//! happened. Absence is not: "no file under /etc was written" cannot be said while file events are missing.

use std::collections::BTreeSet;

use glasshouse_schema::receipt::{Completeness, Provenance};
use glasshouse_schema::{Class, Receipt, Vantage};

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Evidence(u8);

impl Evidence {
    /// What lifecycle alone decides: always known.
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(0b1_1111);

    pub(crate) const fn of(class: Class) -> Self {
        Self(1 << class as u8)
    }

    /// The class that a field of the receipt is evidence of.
    pub(crate) fn of_field(field: &str) -> Self {
        match field {
            "process_tree" | "processes" => Self::of(Class::Process),
            "files" | "filesystem" => Self::of(Class::File),
            "sockets" | "network" | "dns" => Self::of(Class::Network),
            "syscalls" => Self::of(Class::Syscall),
            "operations" => Self::of(Class::Other),
            _ => Self::NONE,
        }
    }

    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether numbers in this evidence count facts, so that missing facts can only make them larger. Those of
    /// processes (pid, uid, exit code) do not.
    pub(crate) const fn counts(self) -> bool {
        self.0 & !Self::of(Class::Process).0 != 0
    }

    fn holds(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a receipt does not know.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Classes that are open.
    pub(crate) open: Evidence,
    reasons: Vec<(Evidence, String)>,
}

impl Gaps {
    pub(crate) fn of(receipt: &Receipt) -> Self {
        let mut gaps = Self::default();
        let coverage = &receipt.coverage;
        if receipt.provenance == Provenance::Guest {
            let reason = "only the guest vouches for it, and a guest can prove presence, not absence";
            gaps.add(Evidence::ALL, reason.into());
        }
        for missing in &coverage.unavailable {
            gaps.add(
                Evidence::ALL,
                format!("the {} vantage point was not available: {}", missing.vantage, missing.reason),
            );
        }
        for vantage in coverage.vantages.iter().filter(|v| v.attached.vantage != Vantage::Runner) {
            let name = vantage.attached.vantage;
            if !vantage.sealed {
                gaps.add(Evidence::ALL, format!("the {name} vantage point gave no seal"));
            }
            if vantage.escaped_tasks > 0 {
                let count = vantage.escaped_tasks;
                gaps.add(Evidence::ALL, format!("{count} tasks left the execution's cgroup ({name})"));
            }
            for bypassed in &vantage.bypassed {
                gaps.add(Evidence::ALL, format!("{bypassed} passed beside the {name} hooks"));
            }
            if vantage.truncated_paths > 0 {
                let count = vantage.truncated_paths;
                gaps.add(Evidence::of(Class::File), format!("{count} paths were cut short ({name})"));
            }
            for class in Class::ALL {
                match vantage.classes.get(class.as_str()) {
                    Some(counters) if counters.lost > 0 => gaps.add(
                        // What was lost from "other" may be a task that escaped.
                        if class == Class::Other { Evidence::ALL } else { Evidence::of(class) },
                        format!("{} {} events were lost ({name})", counters.lost, class.as_str()),
                    ),
                    Some(counters)
                        if u128::from(counters.observed)
                            != u128::from(counters.delivered)
                                + u128::from(counters.collapsed)
                                + u128::from(counters.lost) =>
                    {
                        let reason = format!("the {} counters do not add up ({name})", class.as_str());
                        gaps.add(Evidence::of(class), reason);
                    }
                    _ => {}
                }
            }
        }
        // A class that no kernel outside of the guest counted was not watched.
        for class in Class::ALL {
            let watched = coverage.vantages.iter().any(|vantage| {
                vantage.attached.vantage != Vantage::Runner && vantage.classes.contains_key(class.as_str())
            });
            if !watched {
                gaps.add(Evidence::of(class), format!("{} events were not watched", class.as_str()));
            }
        }
        for cap in &coverage.caps {
            // `files`, `process_tree[].execs`, `sockets (bytes)`: the field comes first.
            let end = cap.list.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(cap.list.len());
            let evidence = match Evidence::of_field(&cap.list[..end]) {
                Evidence::NONE => Evidence::ALL,
                evidence => evidence,
            };
            let reason = format!(
                "the cap of {} on {} left out entries that {} events are about",
                cap.limit, cap.list, cap.events_left_out
            );
            gaps.add(evidence, reason);
        }
        for entry in &coverage.incomplete {
            let evidence = match entry.class {
                None | Some(Class::Other) => Evidence::ALL,
                Some(class) => Evidence::of(class),
            };
            // Most of these are what was found above, in the fold's words.
            if !gaps.open.holds(evidence) {
                gaps.add(evidence, format!("{}: {}", entry.reason, entry.detail));
            }
        }
        if receipt.completeness == Completeness::Partial && gaps.open.is_none() {
            gaps.add(Evidence::ALL, "the receipt is partial and does not say why".into());
        }
        gaps
    }

    fn add(&mut self, evidence: Evidence, reason: String) {
        self.open = self.open.with(evidence);
        self.reasons.push((evidence, reason));
    }

    /// Why the classes in `evidence` are open.
    pub(crate) fn reason(&self, evidence: Evidence) -> String {
        let mut seen = BTreeSet::new();
        let reasons: Vec<&str> = self
            .reasons
            .iter()
            .filter(|(about, _)| !about.and(evidence).is_none())
            .map(|(_, reason)| reason.as_str())
            .filter(|reason| seen.insert(*reason))
            .collect();
        format!("the evidence is incomplete: {}", reasons.join("; "))
    }
}
