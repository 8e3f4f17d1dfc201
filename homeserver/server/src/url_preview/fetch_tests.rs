use std::{
    io::Write as _,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::outside::{MAX_HEADERS, Resolver};

/// A web server on this machine that answers each path as told, and counts.
struct Web {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Web {
    /// `answer` gets the path and gives the whole answer; one that is empty never comes.
    async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, answer) = (Arc::clone(&connections), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let mut request = vec![0; 8_192];
                    let length = stream.read(&mut request).await.unwrap_or_default();
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    let answer = answer(request.split(' ').nth(1).unwrap_or_default());
                    if answer.is_empty() {
                        return std::future::pending().await;
                    }
                    // Whoever asked may have heard enough.
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        Self { port, connections }
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn url(&self, host: &str, path: &str) -> Url {
        format!("http://{host}:{}{path}", self.port).parse().unwrap()
    }
}

/// May connect to 127.0.0.1 and nothing else on this machine.
fn fetcher() -> Fetcher {
    Fetcher::new(Guard::new(vec!["127.0.0.1".parse().unwrap()], Vec::new())).unwrap()
}

/// Looks up names in a list: each time the next addresses of it.
fn resolving(answers: &[&[&str]]) -> Fetcher {
    let parse = |list: &&[&str]| list.iter().map(|address| address.parse().unwrap()).collect::<Vec<IpAddr>>();
    let answers: Mutex<Vec<_>> = Mutex::new(answers.iter().map(parse).rev().collect());
    let resolver: Resolver = Arc::new(move |_| {
        let next = answers.lock().unwrap().pop().expect("no more look-ups");
        Box::pin(async move { Ok(next) })
    });
    let mut fetcher = fetcher();
    fetcher.outside.resolver = resolver;
    fetcher
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes(), body].concat()
}

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_page_is_fetched_and_redirects_are_followed() {
    let web = Web::start(|path| match path {
        "/a?b=c" => redirect("/there/x"),
        "/there/x" => redirect("y"),
        _ => answer("Content-Type: Text/HTML; Charset=\"Latin1\"\r\nContent-Length: 4", b"page"),
    })
    .await;
    let fetched = resolving(&[&["127.0.0.1"], &["127.0.0.1"], &["127.0.0.1"]]);
    let fetched = fetched.fetch(web.url("name.test", "/a?b=c")).await.unwrap();
    assert_eq!(fetched.url, web.url("name.test", "/there/y"));
    let Content::Page(page, charset) = fetched.content else { panic!("{fetched:?}") };
    assert_eq!((page.as_slice(), charset.as_deref()), (&b"page"[..], Some("latin1")));
}

#[tokio::test]
async fn no_way_of_writing_an_inner_address_leads_there() {
    let web = Web::start(|_| answer("Content-Type: text/html", b"inner")).await;
    let outside = Fetcher::new(Guard::new(Vec::new(), Vec::new())).unwrap();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "localhost",
        "LOCALHOST.",
        "0",
        "[::]",
        "%31%32%37.0.0.1",
        "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
    ] {
        let refused = outside.fetch(web.url(host, "/")).await;
        let is_denied = matches!(
            refused,
            Err(FetchError::Outside(OutsideError::Denied(_)) | FetchError::Outside(OutsideError::Resolve(_)))
        );
        assert!(is_denied, "{host}: {refused:?}");
    }
    assert!(matches!(
        outside.fetch("http://169.254.169.254/latest/meta-data".parse().unwrap()).await,
        Err(FetchError::Outside(OutsideError::Denied(_)))
    ));
    assert_eq!(web.count(), 0);
}

#[tokio::test]
async fn a_name_with_one_inner_address_is_not_connected_to() {
    let web = Web::start(|_| answer("Content-Type: text/html", b"inner")).await;
    for addresses in [&["127.0.0.1", "10.0.0.1"][..], &["fd00::1", "127.0.0.1"], &["127.0.0.2"]] {
        let refused = resolving(&[addresses]).fetch(web.url("name.test", "/")).await;
        assert!(matches!(refused, Err(FetchError::Outside(OutsideError::Denied(_)))), "{refused:?}");
    }
    assert_eq!(web.count(), 0);
}

#[tokio::test]
async fn redirects_are_guarded_like_the_first_address() {
    let inner = Web::start(|_| answer("Content-Type: text/html", b"inner")).await;
    let port = inner.port;
    let web = Web::start(move |path| match path {
        "/inner" => redirect(&format!("http://127.0.0.2:{port}/")),
        "/mapped" => redirect(&format!("http://[::ffff:127.0.0.3]:{port}/")),
        "/file" => redirect("file:///etc/passwd"),
        "/gopher" => redirect("gopher://127.0.0.1:70/"),
        "/user" => redirect(&format!("http://user:pass@127.0.0.1:{port}/")),
        "/nowhere" => b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        path => redirect(path),
    })
    .await;
    for (path, expected) in [
        ("/inner", "the address 127.0.0.2 is not permitted"),
        ("/mapped", "the address ::ffff:127.0.0.3 is not permitted"),
        ("/file", "not an http or https address without a user name"),
        ("/gopher", "not an http or https address without a user name"),
        ("/user", "not an http or https address without a user name"),
        ("/nowhere", "the host answered with status 302 Found"),
        ("/round", "more than 5 redirects"),
    ] {
        let refused = fetcher().fetch(web.url("127.0.0.1", path)).await.unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
    assert_eq!((inner.count(), web.count()), (0, 6 + 1 + MAX_REDIRECTS));
}

/// A name server that answers differently the second time (*DNS rebinding*) changes nothing: the address that was checked is connected to,
/// and a redirect is looked up, and checked, anew.
#[tokio::test]
async fn the_address_that_was_checked_is_connected_to() {
    let web = Web::start(|path| match path {
        "/again" => redirect("/"),
        _ => answer("Content-Type: text/html\r\nContent-Length: 2", b"ok"),
    })
    .await;
    resolving(&[&["127.0.0.1"]]).fetch(web.url("name.test", "/")).await.unwrap();
    let refused = resolving(&[&["127.0.0.1"], &["127.0.0.2"]]).fetch(web.url("name.test", "/again")).await;
    assert!(matches!(refused, Err(FetchError::Outside(OutsideError::Denied(_)))), "{refused:?}");
    assert_eq!(web.count(), 2);
}

#[tokio::test]
async fn what_is_endless_is_cut_or_refused() {
    let web = Web::start(|path| match path {
        "/page" => answer("Content-Type: text/html", &vec![b'x'; 3 * MAX_PAGE]),
        "/picture" => answer("Content-Type: image/png", &vec![b'x'; MAX_PICTURE + 1]),
        "/announced" => answer("Content-Type: image/png\r\nContent-Length: 99999999999", b"x"),
        "/broken" => answer("Content-Type: image/png\r\nContent-Length: 5", b"x"),
        "/film" => answer("Content-Type: video/mp4", &vec![b'x'; 4 * MAX_PICTURE]),
        _ => answer(&format!("X: {}\r\nContent-Type: text/html", "y".repeat(2 * MAX_HEADERS)), b"x"),
    })
    .await;
    let fetch = |path: &'static str| {
        let url = web.url("127.0.0.1", path);
        async move { fetcher().fetch(url).await.map(|fetched| fetched.content) }
    };
    assert!(matches!(fetch("/page").await, Ok(Content::Page(page, None)) if page.len() == MAX_PAGE));
    assert!(matches!(fetch("/picture").await, Err(FetchError::TooLarge)));
    assert!(matches!(fetch("/announced").await, Err(FetchError::TooLarge)));
    assert!(matches!(fetch("/broken").await, Err(FetchError::Outside(OutsideError::Exchange(_)))));
    assert!(matches!(fetch("/film").await, Ok(Content::Other)));
    assert!(matches!(fetch("/headers").await, Err(FetchError::Outside(OutsideError::Exchange(_)))));
}

#[tokio::test]
async fn a_packed_page_is_unpacked_no_further_than_an_unpacked_one_is_read() {
    let pack = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (small, bomb) = (pack(b"<title>small</title>"), pack(&vec![0; 64 * MAX_PAGE]));
    assert!(bomb.len() < MAX_PAGE / 8);
    let web = Web::start(move |path| match path {
        "/small" => answer("Content-Type: text/html\r\nContent-Encoding: gzip", &small),
        "/bomb" => answer("Content-Type: text/html\r\nContent-Encoding: GZIP", &bomb),
        "/brotli" => answer("Content-Type: text/html\r\nContent-Encoding: br", b"x"),
        _ => answer("Content-Type: image/png\r\nContent-Encoding: gzip", &bomb),
    })
    .await;
    let fetch = |path: &'static str| {
        let url = web.url("127.0.0.1", path);
        async move { fetcher().fetch(url).await.map(|fetched| fetched.content) }
    };
    assert!(
        matches!(fetch("/small").await, Ok(Content::Page(page, None)) if page == b"<title>small</title>")
    );
    assert!(matches!(fetch("/bomb").await, Ok(Content::Page(page, None)) if page.len() == MAX_PAGE));
    assert!(matches!(fetch("/brotli").await, Err(FetchError::Encoding)));
    assert!(matches!(fetch("/picture").await, Ok(Content::Other)));
}

#[tokio::test]
async fn a_host_that_keeps_silent_is_not_waited_for() {
    let web = Web::start(|_| Vec::new()).await;
    let hasty = Fetcher { time: Duration::from_millis(300), ..fetcher() };
    assert!(matches!(hasty.fetch(web.url("127.0.0.1", "/")).await, Err(FetchError::Time)));
    assert_eq!(web.count(), 1);
}

#[tokio::test]
async fn a_host_that_cannot_prove_its_name_is_not_asked() {
    let web = Web::start(|_| b"no TLS at all".to_vec()).await;
    let url: Url = format!("https://127.0.0.1:{}/", web.port).parse().unwrap();
    assert!(matches!(fetcher().fetch(url).await, Err(FetchError::Outside(OutsideError::Handshake(_)))));
}
