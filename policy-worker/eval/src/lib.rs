//! glasshouse-eval
