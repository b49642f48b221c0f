//! glasshouse-aggregator
