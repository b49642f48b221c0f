//! Firecracker's metrics (docs/metrics.md of its source): a line of JSON each time, with what was counted since the last.

use std::collections::BTreeMap;

use serde_json::Value;

/// Parts of the names of counters that count what went wrong.
const WRONG: [&str; 4] = ["fail", "fault", "panic", "_err"];

/// What went wrong by these metrics, as `part.counter N`, summed over all lines. A line that is cut says nothing.
pub fn troubles(metrics: &str) -> Vec<String> {
    let mut counted = BTreeMap::new();
    for line in metrics.lines() {
        if let Ok(line) = serde_json::from_str(line) {
            count("", &line, &mut counted);
        }
    }
    counted.into_iter().map(|(name, times)| format!("{name} {times}")).collect()
}

fn count(name: &str, value: &Value, counted: &mut BTreeMap<String, u64>) {
    match value {
        Value::Object(parts) => {
            for (part, value) in parts {
                let name = if name.is_empty() { part.clone() } else { format!("{name}.{part}") };
                count(&name, value, counted);
            }
        }
        Value::Number(times) => {
            let counter = name.rsplit('.').next().unwrap_or_default();
            let times = times.as_u64().unwrap_or(0);
            if times > 0 && WRONG.iter().any(|word| counter.contains(word)) {
                *counted.entry(name.to_owned()).or_default() += times;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::troubles;

    #[test]
    fn what_went_wrong_is_summed_over_lines() {
        let told = r#"{"utc_timestamp_ms":1,"vcpu":{"failures":1,"exit_io_in":7},"seccomp":{"num_faults":0}}
{"utc_timestamp_ms":2,"vcpu":{"failures":2},"vsock":{"tx_queue_event_fails":1}}
{"vcpu":{"fail"#;
        assert_eq!(troubles(told), ["vcpu.failures 3", "vsock.tx_queue_event_fails 1"]);
        assert!(troubles("").is_empty());
    }
}
