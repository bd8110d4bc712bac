//! A look at a message before it is read: which model it asks, and whether it is as small as it seems.
//!
//! An empty tensor takes two bytes of a message and some hundreds of memory, so that the number of parts is bounded
//! before they are made. And the model must be known to know where the rest is best read.

use prost::encoding::{WireType, decode_key, decode_varint};

use super::status::bad;
use crate::http::problem::Problem;
use crate::http::v2::models::Named;

/// How many parts a message may have: inputs, outputs, parameters and buffers together.
const PARTS: usize = 4096;

/// What a `ModelInferRequest` asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked<'m> {
    pub(super) model: &'m str,
    pub(super) version: &'m str,
}

impl Asked<'_> {
    /// The model, and the version where one is named.
    pub(super) fn named(&self) -> Named {
        super::named(self.model, self.version)
    }
}

/// Goes over the parts of a `ModelInferRequest`, and into none.
pub(super) fn scan(message: &[u8]) -> Result<Asked<'_>, Problem> {
    let mut asked = Asked::default();
    let mut rest = message;
    for _ in 0..=PARTS {
        if rest.is_empty() {
            return Ok(asked);
        }
        let broken = |error| bad(format!("the message cannot be read: {error}"));
        let (tag, wire) = decode_key(&mut rest).map_err(broken)?;
        let length = match wire {
            WireType::LengthDelimited => decode_varint(&mut rest).map_err(broken)?,
            WireType::Varint => {
                decode_varint(&mut rest).map_err(broken)?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::StartGroup | WireType::EndGroup => return Err(bad("the message has a group, which no field is")),
        };
        let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
        let (part, behind) = split.ok_or_else(|| bad("the message cannot be read: a part goes beyond its end"))?;
        rest = behind;
        // The last one counts, as it does for every reader of such messages.
        let target = match tag {
            1 => &mut asked.model,
            2 => &mut asked.version,
            _ => continue,
        };
        let name = if tag == 1 { "model_name" } else { "model_version" };
        *target = str::from_utf8(part).map_err(|_| bad(format!("{name} is no text")))?;
    }
    Err(bad(format!("the message has over {PARTS} inputs, outputs, parameters and buffers")))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto::inference::ModelInferRequest;
    use super::*;

    #[test]
    fn the_model_is_found_without_reading_the_rest() {
        let message = ModelInferRequest {
            model_name: "fraud".to_owned(),
            model_version: "12".to_owned(),
            id: "7".to_owned(),
            inputs: vec![Default::default(); 3],
            raw_input_contents: vec![vec![1; 300].into()],
            ..Default::default()
        }
        .encode_to_vec();
        assert_eq!(scan(&message).expect("whole"), Asked { model: "fraud", version: "12" });
        assert_eq!(scan(&[]).expect("empty, and whole"), Asked::default());
        // Whatever is cut is refused, or ends between two parts.
        for cut in 0..message.len() {
            assert_eq!(scan(&message[..cut]).is_ok(), ModelInferRequest::decode(&message[..cut]).is_ok(), "{cut}");
        }
    }

    #[test]
    fn too_many_parts_are_refused_before_they_are_made() {
        let inputs = |count| [0x2a, 0].repeat(count);
        assert!(scan(&inputs(PARTS)).is_ok());
        assert!(scan(&inputs(PARTS + 1)).is_err());
    }

    #[test]
    fn a_length_beyond_the_message_or_the_machine_is_refused() {
        for message in [&[0x3a, 0x05, 1][..], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]] {
            assert!(scan(message).expect_err("too long").detail.contains("beyond its end"), "{message:?}");
        }
        for message in [&[0x3a][..], &[0xff; 20], &[0x00, 0x00], &[0x0b], &[0x0a, 0x01, 0xff], &[0x08, 0x80]] {
            assert!(scan(message).is_err(), "{message:?}");
        }
    }
}
