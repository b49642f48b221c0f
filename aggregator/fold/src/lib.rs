//! glasshouse-fold
