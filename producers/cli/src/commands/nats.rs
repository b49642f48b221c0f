//! `nats apply`, `nats check` and `nats operator`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use glasshouse_guest_nats::operator;
use glasshouse_nats::Topology;

use crate::args::{NatsAction, NatsCommand};
use crate::bus;

pub(crate) async fn main(command: NatsCommand) -> anyhow::Result<ExitCode> {
    let (args, applies) = match command.action {
        NatsAction::Apply(args) => (args, true),
        NatsAction::Check(args) => (args, false),
        NatsAction::Operator { dir } => return make_operator(&dir),
    };
    let topology = Topology::embedded(args.replicas)?;
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let (created, differences) = match applies {
        true => {
            let applied = topology.apply(&bus).await?;
            (applied.created, applied.differences)
        }
        false => (Vec::new(), topology.check(&bus).await?),
    };
    if args.json {
        super::print_json(&serde_json::json!({"created": created, "differences": differences}))?;
    } else {
        for name in &created {
            super::print(format!("created {name}\n"))?;
        }
        for difference in &differences {
            super::print(format!("{difference}\n"))?;
        }
        if differences.is_empty() {
            super::print(format!(
                "{} streams and buckets are as they should be\n",
                topology.names().count()
            ))?;
        }
    }
    Ok(ExitCode::from(u8::from(!differences.is_empty())))
}

fn make_operator(dir: &Path) -> anyhow::Result<ExitCode> {
    let setup = operator::setup()?;
    setup.write(dir).with_context(|| {
        format!("cannot write keys to {}; what is there is kept, so choose a new directory", dir.display())
    })?;
    super::print(format!(
        "{dir}/{}: for the server; include it in its configuration\n{dir}/{}: for --creds, everything on the bus\n\
         {dir}/{}: for --guest-nats-key, on nodes\nThe other files are the keys of operator and accounts: keep them elsewhere.\n",
        operator::CONFIGURATION,
        operator::GLASSHOUSE_CREDENTIALS,
        operator::GUESTS_KEY,
        dir = dir.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
