//! glasshouse-e2e
