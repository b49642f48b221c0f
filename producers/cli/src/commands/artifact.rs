//! `artifact`: the files that were kept of an execution.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use glasshouse_nats::Bus;
use glasshouse_schema::files::check_path;
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::Phase;
use glasshouse_schema::{Files, Receipt, StoredFile};

use crate::client::{ArtifactAction, ArtifactCommand, GetArtifactsArgs, ListArtifactsArgs};
use crate::{bus, say};

pub(crate) async fn main(command: ArtifactCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        ArtifactAction::List(args) => list(args).await,
        ArtifactAction::Get(args) => get(args).await,
    }
}

async fn list(args: ListArtifactsArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let files = files_of(&bus, args.execution).await?;
    if args.json {
        super::print_json(&files)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (what, files) in [("in", &files.inputs), ("out", &files.outputs)] {
        for StoredFile { path, mode, bytes, sha256 } in files {
            super::print(format!("{what:<3}  {mode:04o}  {bytes:>10}  {sha256}  {path}\n"))?;
        }
    }
    say_skipped(&files);
    Ok(ExitCode::SUCCESS)
}

async fn get(args: GetArtifactsArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let files = files_of(&bus, args.execution).await?;
    fetch(&bus, &files, &args.output).await?;
    say_skipped(&files);
    Ok(ExitCode::SUCCESS)
}

/// What the record of an execution says, or its receipt once the record is gone.
async fn files_of(bus: &Bus, execution: ExecutionId) -> anyhow::Result<Files> {
    let record = bus.lifecycle_of(execution).await?;
    let told = record.into_iter().find_map(|event| match event.phase {
        Phase::Exited(exited) => Some(*exited.files),
        _ => None,
    });
    if let Some(files) = told {
        return Ok(files);
    }
    let receipt = bus.get_receipt(execution).await?;
    let receipt = receipt.with_context(|| {
        format!(
            "nothing says what files {execution} had: it has not ended yet, never ran, or its record is gone"
        )
    })?;
    Ok(Receipt::decode(&receipt.body)?.artifacts.files)
}

/// Says which files were asked for and not kept.
pub(crate) fn say_skipped(files: &Files) {
    for skipped in &files.skipped {
        say(format_args!("glasshouse: {} is not kept: {}", skipped.path, skipped.reason));
    }
    if files.more_skipped > 0 {
        say(format_args!("glasshouse: {} more files are not kept", files.more_skipped));
    }
}

/// Fetches the outputs into a directory. Each is there whole or not at all, and replaces what is at its path.
pub(crate) async fn fetch(bus: &Bus, files: &Files, dir: &Path) -> anyhow::Result<()> {
    for file in &files.outputs {
        // Whoever wrote the record must not choose a place outside of the directory.
        check_path(&file.path)?;
        let path = dir.join(&file.path);
        fetch_one(bus, file, &path).await.with_context(|| format!("cannot fetch {}", path.display()))?;
    }
    Ok(())
}

async fn fetch_one(bus: &Bus, file: &StoredFile, path: &Path) -> anyhow::Result<()> {
    let (above, name) = path.parent().zip(path.file_name()).context("it is no file's path")?;
    tokio::fs::create_dir_all(above).await?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(format!(".{}", std::process::id()));
    let part = above.join(part);
    let mut options = tokio::fs::OpenOptions::new();
    let mut into = options.write(true).create_new(true).mode(0o600).open(&part).await?;
    let fetched = async {
        bus.fetch_file(file, &mut into).await?;
        into.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(file.mode & 0o777)).await?;
        anyhow::Ok(tokio::fs::rename(&part, path).await?)
    };
    let fetched = fetched.await;
    if fetched.is_err() {
        let _ = tokio::fs::remove_file(&part).await;
    }
    fetched
}
