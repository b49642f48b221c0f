//! `run` by way of a node agent, where there is none: agents of a machine's users need Linux.

use glasshouse_execution::{EngineReport, ExecutionSpec};
use glasshouse_runner::gate::PolicyGate;

use crate::args::{RunArgs, UseAgent};

pub(crate) fn is_wanted(args: &RunArgs) -> anyhow::Result<bool> {
    anyhow::ensure!(args.agent != UseAgent::Always, "a node agent's socket needs Linux");
    Ok(false)
}

pub(crate) async fn run(
    _: &RunArgs,
    _: &ExecutionSpec,
    _: &PolicyGate,
) -> anyhow::Result<(EngineReport, Option<Vec<u8>>)> {
    anyhow::bail!("a node agent's socket needs Linux")
}
