//! `nats apply` and `nats check`.

use std::process::ExitCode;

use glasshouse_nats::Topology;

use crate::args::{NatsAction, NatsCommand};
use crate::bus;

pub(crate) async fn main(command: NatsCommand) -> anyhow::Result<ExitCode> {
    let (args, applies) = match command.action {
        NatsAction::Apply(args) => (args, true),
        NatsAction::Check(args) => (args, false),
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
