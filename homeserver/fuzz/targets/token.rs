//! Any text as a token of sync or paging: what is taken is taken again when it is written, and nothing lost is passed over.
#![no_main]

use keystead_core::{
    lost_positions::LostPositions,
    token::{SyncToken, TimelineToken},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for shards in [1, 2, 8] {
        if let Ok(token) = SyncToken::parse(text, shards) {
            assert_eq!(SyncToken::parse(&token.to_string(), shards).as_ref(), Ok(&token));
            let lost = LostPositions::new([(0, 10, 1 << 40), (1, 10, 1 << 40)]);
            let settled = lost.settle(token.clone(), 1);
            let is_lost = |position: i64| position > 10 && position < 1 << 40;
            assert!(!settled.token.rooms.iter().take(2).any(|position| is_lost(*position)));
            assert!(!is_lost(settled.token.user));
        }
        if let Ok(token) = TimelineToken::parse(text, 0, shards) {
            assert_eq!(TimelineToken::parse(&token.to_string(), 0, shards), Ok(token));
        }
    }
});
