//! How an error is told to a person.

use std::error::Error as StdError;

/// An error and its sources in one line, each said once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// The text on one line: what is no printable character of it is written as an escape. What quotes bytes from outside
/// must not make lines of its own in a log.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            line.extend(character.escape_debug());
        } else {
            line.push(character);
        }
    }
    line
}

/// The text, without its middle if it is long. What is said about bytes from outside quotes them, and it is logged and
/// kept in the history: a message of 10 MiB must not fill either.
pub fn shorten(text: String) -> String {
    const HEAD: usize = 512;
    const TAIL: usize = 256;
    if text.len() <= 1024 {
        return text;
    }
    let (head, rest) = text.split_at(text.floor_char_boundary(HEAD));
    let (_, tail) = rest.split_at(rest.ceil_char_boundary(rest.len().saturating_sub(TAIL)));
    format!("{head} … {tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_begin_a_line_or_colour_it_is_escaped() {
        assert_eq!(one_line("a\n\u{1b}[31m\r\u{2028}é\t\""), "a\\n\\u{1b}[31m\\r\\u{2028}é\\t\"");
    }

    #[test]
    fn a_long_text_keeps_its_ends_and_whole_characters() {
        for character in ["x", "é", "€", "𝄞"] {
            for length in [0, 1, 255, 256, 511, 1024] {
                let short = character.repeat(length / character.len());
                assert_eq!(shorten(short.clone()), short);
            }
            let long = format!("the uri {}: no bucket", character.repeat(10_000));
            let cut = shorten(long);
            assert!(cut.starts_with("the uri ") && cut.ends_with(": no bucket") && cut.len() <= 800, "{cut}");
        }
    }
}
