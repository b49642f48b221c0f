//! `policy`: evaluate and check policies without a bus.

use std::process::ExitCode;

use glasshouse_schema::Receipt;
use glasshouse_schema::ids::Digest;
use glasshouse_schema::receipt::MAX_RECEIPT_BYTES;
use glasshouse_schema::verdict::Decision;

use crate::args::{PolicyAction, PolicyCommand};
use crate::render;

pub(crate) fn main(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        PolicyAction::Eval(args) => {
            let policies = super::read_policies(std::slice::from_ref(&args.policy))?;
            let bytes = super::read_bounded(&args.receipt, MAX_RECEIPT_BYTES, "receipt")?;
            let receipt = Receipt::decode(&bytes)?;
            let mut code = ExitCode::SUCCESS;
            for policy in &policies {
                let verdict = policy.evaluate_post(&receipt, Digest::of(&bytes))?;
                match args.json {
                    true => super::print_json(&verdict)?,
                    false => super::print(render::verdict(&verdict))?,
                }
                code = match verdict.decision {
                    Decision::Allowed => code,
                    Decision::Denied => ExitCode::from(1),
                    Decision::Unknown => ExitCode::from(2),
                };
            }
            Ok(code)
        }
        PolicyAction::Check { policy, json } => {
            for policy in super::read_policies(&[policy])? {
                let reference = policy.reference();
                match json {
                    true => super::print_json(&reference)?,
                    false => super::print(format!(
                        "{} {} is sound; its digest is {}\n",
                        reference.name, reference.version, reference.digest
                    ))?,
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
