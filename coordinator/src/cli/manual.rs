//! `sterna completions` and `sterna man`.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;
use serde_json::json;

use super::error::{CliError, Exit};
use super::output::{Output, write_out};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The directory to write the pages to, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: clap::Command) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "sterna", &mut script);
    write_out(&script)?;
    Ok(Exit::Ok)
}

pub(super) fn pages(args: &ManArgs, command: clap::Command, output: Output) -> Result<Exit, CliError> {
    let failed = |error: &std::io::Error| {
        let mut flat = CliError::new(Exit::Failed, format!("manual pages cannot be written to {}", args.dir.display()));
        flat.causes.push(error.to_string());
        flat
    };
    fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(command, &args.dir))
        .map_err(|e| failed(&e))?;
    let told = format!("manual pages are in {}", args.dir.display());
    output.result(&json!({ "done": true, "directory": args.dir }), || told)?;
    Ok(Exit::Ok)
}
