//! glasshouse-telemetry
