//! glasshouse-policy-worker
