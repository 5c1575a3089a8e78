//! `sterna operation`: what has become of requests, as the long-running operations of Google's Migrate to VMs.

use clap::Subcommand;
use sterna_shared::view::google::Operation;

use super::error::{CliError, Exit};
use super::now;
use super::output::{Format, Output, moment, table};
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum OperationCommand {
    /// List the operations that have made replications, clone jobs and cutovers, or finalize replications, newest first. One is
    /// done when its job has begun, and not when that is over
    #[command(visible_alias = "ls")]
    List,
    /// Show one
    Show {
        /// Its name, or the last part of it: the id of its job, with finalize- before it where it finalizes
        name: String,
    },
}

pub(super) async fn run(command: &OperationCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    let mut list = client.replications(now()).await?.known().operations();
    match command {
        OperationCommand::List if output.format == Format::Google => output.json(&list)?,
        OperationCommand::List => output.result(&list.operations, || draw(&list.operations))?,
        OperationCommand::Show { name } => {
            list.operations.retain(|of| is_called(of, name));
            let Some(operation) = list.operations.first() else {
                return Err(CliError::new(Exit::NotFound, format!("no operation {name} is known"))
                    .hint("see sterna operation list"));
            };
            match output.format {
                Format::Google => output.json(operation)?,
                _ => output.result(operation, || draw(std::slice::from_ref(operation)))?,
            }
        }
    }
    Ok(Exit::Ok)
}

fn is_called(operation: &Operation, name: &str) -> bool {
    let whole = operation.name.to_string();
    whole == name || whole.rsplit('/').next() == Some(name)
}

fn draw(operations: &[Operation]) -> String {
    let rows = operations.iter().map(|of| {
        let metadata = of.metadata();
        let outcome = match (&of.error, of.done) {
            (Some(error), _) => error.message.clone(),
            (None, true) => "done".to_owned(),
            (None, false) => metadata.status_message.clone(),
        };
        [
            of.name.to_string().rsplit('/').next().unwrap_or_default().to_owned(),
            metadata.verb.to_owned(),
            metadata.target.clone(),
            moment(metadata.create_time.0),
            outcome,
        ]
    });
    table(["OPERATION", "VERB", "TARGET", "ASKED", "OUTCOME"], rows)
}
