//! Where there is no Linux no command runs here, so there is nothing to forward signals to.

use std::sync::Arc;

use glasshouse_execution::backend::ExecutionBackend;

/// Forwards nothing.
#[derive(Debug)]
pub struct SignalForwarder;

impl SignalForwarder {
    /// Does nothing on this system.
    pub fn install(_: Arc<dyn ExecutionBackend>) -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Never returns: no signal is caught here.
    pub fn stop(&self) -> impl Future<Output = ()> + Send + 'static {
        std::future::pending()
    }
}
