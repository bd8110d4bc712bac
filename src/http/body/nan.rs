//! NaN, which is no JSON, and which Python writes all the same for a number that is missing.

use super::Error;

/// A body in which null stands for NaN.
pub(super) struct Text<'b> {
    pub(super) body: Vec<u8>,
    original: &'b [u8],
}

/// Null for each NaN that stands where a value may; nothing where there is none.
///
/// Only a body that is no JSON comes here, so that nobody else pays for it.
pub(super) fn to_null(original: &[u8]) -> Option<Text<'_>> {
    let mut body = Vec::new();
    let mut copied = 0;
    for at in places(original) {
        body.extend_from_slice(original.get(copied..at)?);
        body.extend_from_slice(b"null");
        copied = at + 3;
    }
    body.extend_from_slice(original.get(copied..)?);
    (copied > 0).then_some(Text { body, original })
}

/// Where NaN stands outside of text.
fn places(body: &[u8]) -> impl Iterator<Item = usize> {
    let mut at = 0;
    let mut text = false;
    std::iter::from_fn(move || {
        while let Some(byte) = body.get(at) {
            at += 1;
            match byte {
                b'"' => text = !text,
                b'\\' if text => at += 1,
                b'N' if !text && body.get(at..at + 2) == Some(b"aN") => {
                    at += 2;
                    return Some(at - 3);
                }
                _ => {}
            }
        }
        None
    })
}

impl Text<'_> {
    /// An error in this body, with its column in the client's.
    pub(super) fn mend(&self, error: Error) -> Error {
        match error {
            Error::Syntax(message) => Error::Syntax(self.mend_place(message)),
            Error::Mismatch(message) => Error::Mismatch(self.mend_place(message)),
        }
    }

    fn mend_place(&self, message: String) -> String {
        let place = message.rsplit_once(" at line ").and_then(|(message, place)| {
            let (line, column) = place.split_once(" column ")?;
            Some((message, line.parse::<usize>().ok()?, column.parse::<usize>().ok()?))
        });
        let Some((what, line, column)) = place else { return message };
        let original = self.original.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
        // A text does not go over a line's end, so that a line can be looked at by itself. Each null before the place
        // is a letter longer than what it stands for.
        let longer = places(original).enumerate().take_while(|(before, at)| at + before + 4 <= column).count();
        format!("{what} at line {line} column {}", column - longer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(body: &str) -> Option<String> {
        to_null(body.as_bytes()).map(|text| String::from_utf8(text.body).expect("UTF-8"))
    }

    #[test]
    fn only_what_is_no_text_is_replaced() {
        assert_eq!(rewritten("[NaN,1,NaN]").as_deref(), Some("[null,1,null]"));
        assert_eq!(rewritten(r#"["NaN","\"NaN",NaN,"\\",NaN]"#).as_deref(), Some(r#"["NaN","\"NaN",null,"\\",null]"#));
        for body in ["", "N", "Na", r#""NaN"#, r#"["\"NaN"]"#, "nan", r#""\"#] {
            assert_eq!(rewritten(body), None, "{body}");
        }
    }

    #[test]
    fn a_place_is_one_in_the_clients_text() {
        let text = to_null(b"[\n[NaN, NaN, x, NaN]]").expect("there is NaN");
        let mend = |column: usize| text.mend(Error::Syntax(format!("why at line 2 column {column}")));
        assert_eq!(mend(14), Error::Syntax("why at line 2 column 12".to_owned()));
        assert_eq!(mend(2), Error::Syntax("why at line 2 column 2".to_owned()));
        assert_eq!(text.mend(Error::Mismatch("why".to_owned())), Error::Mismatch("why".to_owned()));
    }
}
