//! Colours, where a terminal looks on and NO_COLOR does not forbid them.

use std::io::IsTerminal as _;

/// How to colour what goes to the standard output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Red,
    Green,
    Yellow,
    Dim,
}

impl Paint {
    pub(super) fn stdout() -> Self {
        // no-color.org: any value but an empty one.
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { on: std::io::stdout().is_terminal() && !forbidden }
    }

    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { on: false }
    }

    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => "1;31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Dim => "2",
        };
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A text from outside on one line: it moves no cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A length of time as a person says it: `3 s`, `4 min`, `2 h`, `9 d`.
pub(super) fn age(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago that was; a moment in the future, by another clock, is now.
pub(super) fn since(at: jiff::Timestamp) -> std::time::Duration {
    jiff::Timestamp::now().duration_since(at).try_into().unwrap_or_default()
}
