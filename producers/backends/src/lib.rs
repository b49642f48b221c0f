//! glasshouse-backends
