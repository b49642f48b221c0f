//! `image`: root filesystem images for microVMs.

use std::process::ExitCode;

use glasshouse_images::rootfs::{self, Inspection, Limits};

use crate::image::{BuildImageArgs, ImageAction, ImageCommand};
use crate::say;
use crate::spool::human;

pub(crate) fn main(command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        ImageAction::Build(args) => build(&args)?,
        ImageAction::Inspect(args) => {
            // The error says its cause itself.
            let image = rootfs::inspect(&args.image).map_err(|error| anyhow::anyhow!("{error}"))?;
            if args.json { super::print_json(&image)? } else { super::print(lines(&image))? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(args: &BuildImageArgs) -> anyhow::Result<()> {
    let limits = Limits { bytes: args.max_gib << 30, ..Limits::default() };
    let built = rootfs::build(&args.from, args.tag.as_deref(), &args.output, limits)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    if built.sockets_left_out > 0 {
        say(format_args!("glasshouse: {} sockets are left out: no image holds them", built.sockets_left_out));
    }
    if built.unchanged {
        let image = args.output.display();
        say(format_args!("glasshouse: {image} has these bytes already and is left as it is"));
    }
    if args.json { super::print_json(&built) } else { super::print(lines(&built.image)) }
}

fn lines(image: &Inspection) -> String {
    format!(
        "{}\n  filesystem  {}, {} in {} files\n  sha256      {}\n",
        image.path.display(),
        image.filesystem,
        human(image.bytes),
        image.inodes,
        image.sha256
    )
}
