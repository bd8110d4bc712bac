//! What an operator, or a message, tells a slot.

use super::Manager;
use super::handle::{Denied, Done};
use crate::notification::Control;

impl Manager {
    pub(super) fn control(&mut self, control: &Control) -> Result<Done, Denied> {
        Err(Denied::NoSlot(control.slot.to_string()))
    }
}
