//! The reference of the command line: every command, flag, variable, file key and default, as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::Cli;
use crate::config::Settings;

const HEAD: &str = "\
<!-- Made from the program's own words: HOTSERVE_GENERATE=1 cargo test --test main reference:: -->
# Reference

A setting of `hotserve serve` comes from its flag, else its environment variable, else the file that `--config` names,
else its default. In the file, which is TOML, its key is the flag without the dashes, where no other is named; a list is an
array. `hotserve config show` says what a server would read and where each value comes from, and `hotserve config check`
whether all of it is sound. Durations are written `200ms`, `5s`, `10m`, `24h`; sizes `65536`, `64KiB`, `8MiB`, `4GiB`.

Of no flag: `HOTSERVE_ADMIN_TOKEN` may hold the token of `--admin-token-file`, `RUST_LOG` says what is logged
(`warn,hotserve=info`), `NO_COLOR` forbids colours, and region, credentials and endpoints are those of the AWS SDK
(`AWS_REGION`, `AWS_PROFILE`, `AWS_ENDPOINT_URL_KINESIS`, …).

A command exits with 0, with 64 where a flag, a variable or a file is wrong, and with 1 for everything else.
";

/// All of it; the same wherever it is made.
pub fn reference() -> String {
    let mut root = Cli::command();
    root.build();
    let serve: BTreeSet<String> =
        arguments(root.find_subcommand("serve")).map(|arg| arg.get_id().to_string()).collect();
    let mut text = HEAD.to_owned();
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        describe(command, "hotserve", &serve, &mut text);
    }
    text
}

fn describe(command: &Command, parent: &str, serve: &BTreeSet<String>, text: &mut String) {
    let path = format!("{parent} {}", command.get_name());
    // Writing to a String cannot fail.
    let _ = write!(text, "\n## {path}\n\n{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default());
    let all: Vec<&Arg> = arguments(Some(command)).collect();
    let repeats = path.starts_with("hotserve config ");
    let own: Vec<&Arg> = all.into_iter().filter(|arg| !repeats || !serve.contains(arg.get_id().as_str())).collect();
    if repeats {
        text.push_str("\nIt takes every flag of `hotserve serve`.\n");
    }
    let keyed = path == "hotserve serve";
    if !own.is_empty() {
        let _ = write!(text, "\n| | variable | default | |\n|---|---|---|---|\n");
        own.into_iter().for_each(|arg| row(arg, keyed, text));
    }
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        describe(command, &path, serve, text);
    }
}

fn row(arg: &Arg, keyed: bool, text: &mut String) {
    let names =
        || arg.get_value_names().into_iter().flatten().map(|name| format!("{name}")).collect::<Vec<_>>().join(" ");
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let name = match (arg.get_long(), takes) {
        (None, _) => names(),
        (Some(long), false) => format!("--{long}"),
        // Its value may be left out.
        (Some(long), true) if arg.get_num_args().is_some_and(|range| range.min_values() == 0) => {
            format!("--{long}[={}]", names())
        }
        (Some(long), true) => format!("--{long} {}", names()),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split(" [default: ").next().unwrap_or_default();
    let given = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
    let given = if takes { given.collect::<Vec<_>>().join(",") } else { String::new() };
    let default = Settings::default_of(arg).unwrap_or(given);
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let choices: Vec<_> = match arg.is_hide_possible_values_set() || !takes {
        true => Vec::new(),
        false => arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect(),
    };
    let choices = if choices.is_empty() { String::new() } else { format!(": {}", choices.join(", ")) };
    let key = Settings::key(arg);
    let key =
        if keyed && arg.get_long() != Some(key.as_str()) { format!("; in the file `{key}`") } else { String::new() };
    let cell = |text: String| text.replace('|', "\\|").replace('\n', " ");
    let _ = writeln!(
        text,
        "| `{}` | {variable} | {} | {} |",
        cell(name),
        cell(default),
        cell(format!("{help}{choices}{key}"))
    );
}

fn arguments(command: Option<&Command>) -> impl Iterator<Item = &Arg> {
    let listed = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    command.into_iter().flat_map(Command::get_arguments).filter(listed)
}
