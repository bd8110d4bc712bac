//! Where each setting comes from: what `hotserve config show` shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args as _, Command};

use super::{Error, Settings};

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// The file of `--config`.
    File(PathBuf),
    /// Nobody has said anything.
    Default,
}

/// One setting, as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name: that of the flag, and the key in the file.
    pub name: String,
    /// Its value, several with commas between; nothing where there is none.
    pub value: Option<String>,
    /// Where that comes from.
    pub origin: Origin,
}

impl Settings {
    /// The name of an argument's setting as the file has it.
    pub fn key(argument: &Arg) -> String {
        argument.get_id().as_str().replace('_', "-")
    }

    /// What an argument's help says of the default.
    pub fn default_of(argument: &Arg) -> Option<String> {
        let help = argument.get_help()?.to_string();
        let (_, default) = help.rsplit_once("[default: ")?;
        Some(default.trim_end_matches(']').to_owned())
    }

    /// Every argument that is a setting.
    pub fn arguments() -> Vec<Arg> {
        Self::augment_args(Command::new("settings")).get_arguments().cloned().collect()
    }

    /// Every setting with its value and where that comes from, as [`or`](Self::or) decides: the arguments that were
    /// matched (flags and variables), then the file, then the default.
    ///
    /// # Panics
    /// When the arguments of `matches` are not those of the settings.
    pub fn explain(matches: &ArgMatches, file: Option<&Path>) -> Result<Vec<Setting>, Error> {
        let kept = file.map(|path| Ok((path, read(path)?))).transpose()?;
        let explained = Self::arguments().into_iter().map(|argument| {
            let (id, key) = (argument.get_id().as_str(), Self::key(&argument));
            let given = || {
                let raw = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
                raw.collect::<Vec<_>>().join(",")
            };
            let long = argument.get_long().unwrap_or(id).to_owned();
            let variable = || argument.get_env().unwrap_or_default().to_string_lossy().into_owned();
            let in_file = kept.as_ref().and_then(|(path, table)| Some((*path, table.get(&key)?)));
            let (value, origin) = match (matches.value_source(id), in_file) {
                (Some(ValueSource::CommandLine), _) => (Some(given()), Origin::Flag(format!("--{long}"))),
                (Some(ValueSource::EnvVariable), _) => (Some(given()), Origin::Variable(variable())),
                (_, Some((path, value))) => (Some(value.clone()), Origin::File(path.to_owned())),
                _ => (Self::default_of(&argument), Origin::Default),
            };
            Setting { name: long, value, origin }
        });
        Ok(explained.collect())
    }
}

/// The keys of the file with their values as text.
fn read(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    // Whatever is wrong with it is told as the server tells it.
    Settings::from_file(path)?;
    let wrong = |error: String| Error::new(format!("--config {}", path.display()), error);
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(table.into_iter().map(|(key, value)| (key, plain(&value))).collect())
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        // No setting is one of these.
        toml::Value::Datetime(_) | toml::Value::Table(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_says_its_value_and_where_it_comes_from() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "stream = \"a\"\nport = 1\nallow = [\"s3://x\", \"s3://y\"]").expect("writable");
        let command = Settings::augment_args(Command::new("serve"));
        // A variable is no matter of a unit test: the environment is the process's.
        let matches = command.get_matches_from(["serve", "--port", "2", "--pin", "m=1", "--pin", "n=2"]);
        let settings = Settings::explain(&matches, Some(file.path())).expect("valid");
        let of = |name: &str| settings.iter().find(|setting| setting.name == name).expect(name);
        let told = |name: &str| (of(name).value.as_deref(), of(name).origin.clone());
        let kept = Origin::File(file.path().to_owned());
        assert_eq!(told("port"), (Some("2"), Origin::Flag("--port".to_owned())), "a flag wins over the file");
        assert_eq!(told("pin"), (Some("m=1,n=2"), Origin::Flag("--pin".to_owned())));
        assert_eq!(told("stream"), (Some("a"), kept.clone()));
        assert_eq!(told("allow"), (Some("s3://x,s3://y"), kept));
        assert_eq!(told("drain"), (Some("25s"), Origin::Default));
        assert_eq!(told("max-row-time"), (None, Origin::Default));
        std::fs::write(file.path(), "prot = 1").expect("writable");
        assert!(Settings::explain(&matches, Some(file.path())).is_err());
    }

    #[test]
    fn every_key_of_the_file_is_the_name_of_an_argument() {
        for argument in Settings::arguments() {
            let key = Settings::key(&argument);
            // Wrong in its type perhaps, but known.
            let error = toml::from_str::<Settings>(&format!("{key} = {{}}")).expect_err("no setting is a table");
            assert!(!error.to_string().contains("unknown field"), "{key}: {error}");
        }
    }
}
