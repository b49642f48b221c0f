//! glasshouse-nats
