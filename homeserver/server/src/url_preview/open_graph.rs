//! What a page says about itself: its Open Graph properties, or else its title and description.
//!
//! Only the tokens of the page are looked at, in one pass: no tree is built that a hostile page could make deep.
//!
//! <https://ogp.me>

use std::cell::{Cell, RefCell};

use encoding_rs::{Encoding, UTF_8};
use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
        states::RawKind,
    },
};
use serde_json::{Map, Value};

/// The most properties that are kept.
const MAX_PROPERTIES: usize = 40;
/// The most characters of a value that are kept.
const MAX_VALUE: usize = 1_000;
/// How much of a page is read between two looks at what has come of it.
const STEP: usize = 4 * 1024;
/// A page in which no token ends for so many bytes is not read on: a tag with tens of thousands of attributes takes the tokenizer long.
const MAX_TOKEN: usize = 32 * 1024;
/// Within so many bytes a page has to say its encoding.
/// <https://html.spec.whatwg.org/multipage/semantics.html#charset>
const ENCODING_WITHIN: usize = 1024;

/// What a page says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenGraph {
    /// Its properties by name (`og:title`), without pictures.
    pub(super) properties: Map<String, Value>,
    /// The address of its picture, as it stands in the page.
    pub(super) image: Option<String>,
}

/// Reads a page, or the beginning of one. `charset` is what the answer's header says.
pub(super) fn read(page: &[u8], charset: Option<&str>) -> OpenGraph {
    let (text, _, _) = encoding_of(page, charset).decode(page);
    let tokenizer = Tokenizer::new(Reader::default(), TokenizerOpts::default());
    let (mut rest, mut silent, mut seen) = (&*text, 0, 0);
    while !rest.is_empty() && silent < MAX_TOKEN {
        let step = rest.floor_char_boundary(STEP.min(rest.len()));
        let (now, later) = rest.split_at(step);
        let queue = BufferQueue::default();
        queue.push_back(StrTendril::from(now));
        // No script is run, so all of the step is read at once.
        let _ = tokenizer.feed(&queue);
        let tokens = tokenizer.sink.tokens.get();
        silent = if tokens == seen { silent + step } else { 0 };
        (rest, seen) = (later, tokens);
    }
    if silent < MAX_TOKEN {
        tokenizer.end();
    }
    tokenizer.sink.found.into_inner().finish()
}

/// The header's word counts, then a mark at the page's beginning (which the decoder finds itself), then the page's own.
fn encoding_of(page: &[u8], charset: Option<&str>) -> &'static Encoding {
    let own = || {
        let beginning = page.get(..ENCODING_WITHIN).unwrap_or(page).to_ascii_lowercase();
        let place = beginning.windows(8).position(|window| window == b"charset=")?;
        let label = beginning.get(place + 8..)?.trim_ascii_start();
        let label = label.strip_prefix(b"\"").or_else(|| label.strip_prefix(b"'")).unwrap_or(label);
        let end = label.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"-_:.".contains(byte));
        Encoding::for_label(label.get(..end.unwrap_or(label.len()))?)
    };
    charset.and_then(|label| Encoding::for_label(label.as_bytes())).or_else(own).unwrap_or(UTF_8)
}

#[derive(Default)]
struct Reader {
    found: RefCell<Found>,
    tokens: Cell<usize>,
    is_in_title: Cell<bool>,
}

#[derive(Default)]
struct Found {
    open_graph: Map<String, Value>,
    image: Option<String>,
    /// What stands in for what Open Graph does not tell.
    description: Option<String>,
    fallbacks: Map<String, Value>,
    fallback_image: Option<String>,
    title: Option<String>,
}

impl TokenSink for Reader {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        self.tokens.set(self.tokens.get().saturating_add(1));
        match token {
            Token::TagToken(tag) => return self.tag(&tag),
            Token::CharacterTokens(text) if self.is_in_title.get() => {
                let mut found = self.found.borrow_mut();
                let title = found.title.get_or_insert_default();
                if title.len() < 4 * MAX_VALUE {
                    title.push_str(&text);
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Reader {
    fn tag(&self, tag: &Tag) -> TokenSinkResult<()> {
        let is_start = tag.kind == TagKind::StartTag;
        match &*tag.name {
            "title" => {
                // The first one is the page's; others are those of pictures.
                self.is_in_title.set(is_start && self.found.borrow().title.is_none());
                if is_start {
                    return TokenSinkResult::RawData(RawKind::Rcdata);
                }
            }
            "textarea" if is_start => return TokenSinkResult::RawData(RawKind::Rcdata),
            "script" if is_start => return TokenSinkResult::RawData(RawKind::ScriptData),
            "style" | "xmp" | "iframe" | "noembed" | "noframes" if is_start => {
                return TokenSinkResult::RawData(RawKind::Rawtext);
            }
            "meta" if is_start => self.found.borrow_mut().meta(tag),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Found {
    fn meta(&mut self, tag: &Tag) {
        let attribute = |name: &str| tag.attrs.iter().find(|a| &*a.name.local == name).map(|a| &*a.value);
        let Some(name) = attribute("property").or_else(|| attribute("name")) else { return };
        let Some(value) = attribute("content").map(clean).filter(|value| !value.is_empty()) else { return };
        let name = name.trim().to_ascii_lowercase();
        match &*name {
            "og:image" | "og:image:url" | "og:image:secure_url" => {
                self.image.get_or_insert(value);
            }
            "twitter:image" | "twitter:image:src" => {
                self.fallback_image.get_or_insert(value);
            }
            "description" => {
                self.description.get_or_insert(value);
            }
            "twitter:title" => insert(&mut self.fallbacks, "og:title", value),
            "twitter:description" => insert(&mut self.fallbacks, "og:description", value),
            // What belongs to a picture is measured on the picture itself.
            _ if name.starts_with("og:image:") => {}
            _ if name.starts_with("og:") && name.len() <= 64 => insert(&mut self.open_graph, &name, value),
            _ => {}
        }
    }

    fn finish(self) -> OpenGraph {
        let mut properties = self.open_graph;
        let title = self.title.as_deref().map(clean).filter(|title| !title.is_empty());
        let mut others = self.fallbacks;
        title.into_iter().for_each(|title| insert(&mut others, "og:title", title));
        self.description.into_iter().for_each(|text| insert(&mut others, "og:description", text));
        for (name, value) in others {
            properties.entry(name).or_insert(value);
        }
        OpenGraph { properties, image: self.image.or(self.fallback_image) }
    }
}

/// The first value of a property counts.
fn insert(properties: &mut Map<String, Value>, name: &str, value: String) {
    if properties.len() < MAX_PROPERTIES && !properties.contains_key(name) {
        properties.insert(name.to_owned(), value.into());
    }
}

/// White space made single blanks, control characters left out, and not too long.
fn clean(value: &str) -> String {
    let words: Vec<&str> = value.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn properties(page: &str) -> Value {
        read(page.as_bytes(), None).properties.into()
    }

    #[test]
    fn open_graph_counts_before_all_else() {
        let page = r#"<!doctype html><html><head><title>Plain &amp; simple</title>
            <meta name="description" content="described">
            <META Property=" og:title " content="  Graph
              title ">
            <meta property="og:title" content="another">
            <meta property="og:type" content="article"><meta property="og:image:width" content="5">
            <meta property="og:description" content="">
            <meta property='og:image' content='/a.png'><meta property="og:image" content="/b.png">"#;
        assert_eq!(
            properties(page),
            json!({ "og:title": "Graph title", "og:type": "article", "og:description": "described" })
        );
        assert_eq!(read(page.as_bytes(), None).image.as_deref(), Some("/a.png"));
    }

    #[test]
    fn a_page_without_it_has_a_title() {
        assert_eq!(
            properties("<title>One &lt;two&gt;\n three</title><svg><title>x</title></svg>"),
            json!({ "og:title": "One <two> three" })
        );
        let page =
            "<meta name=twitter:title content=T><meta name=twitter:image content=i.png><title>t</title>";
        assert_eq!(properties(page), json!({ "og:title": "T" }));
        assert_eq!(read(page.as_bytes(), None).image.as_deref(), Some("i.png"));
        for nothing in ["", "no page", "<title></title>", "<title>unfinished"] {
            assert_eq!(read(nothing.as_bytes(), None).image, None, "{nothing}");
        }
    }

    #[test]
    fn what_only_looks_like_a_tag_is_none() {
        let page = "<script>var x = '<meta property=og:title content=script>';</script><style><title>s</title></style>\
                    <!-- <title>comment</title> --><title>true <b></title>";
        assert_eq!(properties(page), json!({ "og:title": "true <b>" }));
    }

    #[test]
    fn encodings_are_those_of_the_header_or_the_page() {
        let latin = b"<title>\xe4\xf6</title>";
        assert_eq!(read(latin, Some("iso-8859-1")).properties["og:title"], "\u{e4}\u{f6}");
        let own = [&b"<meta charset='windows-1251'>"[..], b"<title>\xcf</title>"].concat();
        assert_eq!(read(&own, None).properties["og:title"], "\u{41f}");
        assert_eq!(
            read("<title>\u{20ac}</title>".as_bytes(), Some("nonsense")).properties["og:title"],
            "\u{20ac}"
        );
    }

    #[test]
    fn hostile_pages_cost_little() {
        let begun = std::time::Instant::now();
        let attributes: String = (0..200_000).map(|n| format!(" a{n}")).collect();
        assert_eq!(properties(&format!("<title>t</title><b{attributes}>")), json!({ "og:title": "t" }));
        properties(&"<div>".repeat(20_000));
        properties(&format!("<title>{}", "x".repeat(200_000)));
        let many: String = (0..1_000).map(|n| format!("<meta property=og:p{n} content={n}>")).collect();
        assert_eq!(read(many.as_bytes(), None).properties.len(), MAX_PROPERTIES);
        let long = format!("<title>{}</title>", "\u{e4}".repeat(100_000));
        assert_eq!(properties(&long)["og:title"].as_str().unwrap().chars().count(), MAX_VALUE);
        // Read to its end, the tag alone takes the tokenizer many minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    }
}
