package chat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	testKey = Secret("the-key-that-nobody-may-see")
	testApp = 1400000000
)

// serve returns a client of a server with handler h.
func serve(t testing.TB, h http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return newClient(t, Config{BaseURL: server.URL})
}

func newClient(t testing.TB, c Config) *Client {
	t.Helper()
	if c.SDKAppID == 0 {
		c.SDKAppID = testApp
	}
	if c.UserSig == "" {
		c.SecretKey = testKey
	}
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// responding serves one fixed response.
func responding(t testing.TB, status int, body string) *Client {
	return serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func call(t testing.TB, c *Client) *Error {
	t.Helper()
	_, err := c.Create(context.Background(), CreateRequest{FromAccount: "u", GroupName: "g", Items: []Item{{OneToOne, "a"}}})
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("got %T, want *Error", err)
	}
	return e
}

func TestNewNamesTheFieldThatIsWrong(t *testing.T) {
	good := Config{BaseURL: "https://h", SDKAppID: 1, SecretKey: "hush"}
	tests := []struct {
		field  string
		change func(*Config)
	}{
		{"BaseURL", func(c *Config) { c.BaseURL = "" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "host" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "ftp://host" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "https://" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "https://hush\x7f" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "https://u:hush@h" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "https://h/v4/x?usersig=hush" }},
		{"BaseURL", func(c *Config) { c.BaseURL = "https://h/#hush" }},
		{"SDKAppID", func(c *Config) { c.SDKAppID = 0 }},
		{"Admin", func(c *Config) { c.Admin = "é" }},
		{"Admin", func(c *Config) { c.Admin = strings.Repeat("a", 33) }},
		{"SecretKey", func(c *Config) { c.SecretKey = "" }},
		{"SecretKey", func(c *Config) { c.SecretKey = "hush\n" }},
		{"UserSig", func(c *Config) { c.UserSig = "hush" }},
		{"UserSig", func(c *Config) { c.SecretKey, c.UserSig = "", "hush\r" }},
		{"SigLifetime", func(c *Config) { c.SigLifetime = time.Millisecond }},
		{"SigLifetime", func(c *Config) { c.SigLifetime = -time.Hour }},
		{"Timeout", func(c *Config) { c.Timeout = -1 }},
		{"MaxConns", func(c *Config) { c.MaxConns = -1 }},
	}
	for _, tt := range tests {
		c := good
		tt.change(&c)
		_, err := New(c)
		if err == nil || !strings.HasPrefix(err.Error(), tt.field+":") || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %v, want an error about %s without the secret", err, tt.field)
		}
	}
	if _, err := New(good); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestBodyIsWhatCreateSends(t *testing.T) {
	r := CreateRequest{"<u&v>", "家族 \"q\"", []Item{{OneToOne, "a"}, {GroupChat, "@TGS#1"}}}
	_, _, sent := exchange(t, func(c *Client) error { _, err := c.Create(t.Context(), r); return err }, okResponse)
	if got := string(r.Body()); got != sent {
		t.Errorf("got %s, want %s", got, sent)
	}
}

// exchange makes one call and gives the query and body that the server saw.
func exchange(t *testing.T, make func(*Client) error, response string) (path string, query url.Values, body string) {
	t.Helper()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		path, query, body = r.Method+" "+r.URL.Path, r.URL.Query(), string(b)
		io.WriteString(w, response)
	})
	if err := make(c); err != nil {
		t.Fatal(err)
	}
	return path, query, body
}

const okResponse = `{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}`

func TestRequestsOnTheWire(t *testing.T) {
	ctx := context.Background()
	tests := []struct {
		path, body string
		make       func(*Client) error
	}{
		{
			"POST /v4/recentcontact/create_contact_group",
			`{"From_Account":"user15","GroupContactItem":[{"GroupName":"test0","ContactItem":[{"Type":1,"To_Account":"user0"},` +
				`{"Type":2,"ToGroupId":"@TGS#1"}]}]}`,
			func(c *Client) error {
				_, err := c.Create(ctx, CreateRequest{"user15", "test0", []Item{{OneToOne, "user0"}, {GroupChat, "@TGS#1"}}})
				return err
			},
		},
		{
			"POST /v4/recentcontact/update_contact_group",
			`{"From_Account":"u","UpdateType":1,"UpdateGroup":{"UpdateGroupType":2,"OldGroupName":"g","ContactUpdateItem":[` +
				`{"ContactOptType":1,"ContactItem":{"Type":1,"To_Account":"a"}},` +
				`{"ContactOptType":2,"ContactItem":{"Type":2,"ToGroupId":"b"}}]}}`,
			func(c *Client) error {
				_, err := c.Update(ctx, UpdateRequest{"u", "g", []Item{{OneToOne, "a"}}, []Item{{GroupChat, "b"}}})
				return err
			},
		},
		{
			"POST /v4/recentcontact/update_contact_group",
			`{"From_Account":"u","UpdateType":1,"UpdateGroup":{"UpdateGroupType":1,"OldGroupName":"g","NewGroupName":"G"}}`,
			func(c *Client) error { return c.Rename(ctx, RenameRequest{"u", "g", "G"}) },
		},
		{
			"POST /v4/recentcontact/get_contact_group", `{"From_Account":"u","StartIndex":7}`,
			func(c *Client) error { _, err := c.Get(ctx, "u", 7); return err },
		},
		{
			"POST /v4/recentcontact/del_contact_group", `{"From_Account":"u","GroupName":["g"]}`,
			func(c *Client) error { return c.Delete(ctx, "u", "g") },
		},
	}
	for _, tt := range tests {
		path, query, body := exchange(t, tt.make, okResponse)
		if path != tt.path {
			t.Errorf("path: got %s, want %s", path, tt.path)
		}
		if body != tt.body {
			t.Errorf("%s: body: got %s, want %s", tt.path, body, tt.body)
		}
		sig := query.Get("usersig")
		if code := VerifyUserSig(sig, testKey, testApp, DefaultAdmin, time.Now()); code != 0 {
			t.Errorf("%s: usersig: got %d, want 0", tt.path, code)
		}
		want := url.Values{
			"sdkappid": {"1400000000"}, "identifier": {DefaultAdmin}, "usersig": {sig}, "contenttype": {"json"},
			"random": query["random"],
		}
		if !reflect.DeepEqual(query, want) || query.Get("random") == "" {
			t.Errorf("%s: query: got %v, want %v", tt.path, query, want)
		}
	}
}

func TestRandomIsFresh(t *testing.T) {
	var mu sync.Mutex
	seen := make(map[string]bool)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.URL.Query().Get("random")] = true
		mu.Unlock()
		io.WriteString(w, okResponse)
	})
	for range 5 {
		call(t, c)
	}
	if len(seen) != 5 {
		t.Errorf("got %d different numbers, want 5", len(seen))
	}
}

func TestBaseURLPrefixAndOddAdmin(t *testing.T) {
	var path, admin string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, admin = r.URL.Path, r.URL.Query().Get("identifier")
		io.WriteString(w, okResponse)
	}))
	t.Cleanup(server.Close)
	c := newClient(t, Config{BaseURL: server.URL + "/chat/", Admin: "a&b c"})
	call(t, c)
	if want := "/chat/v4/recentcontact/create_contact_group"; path != want || admin != "a&b c" {
		t.Errorf("got %s for %q, want %s", path, admin, want)
	}
}

func TestResponsesWithoutACode(t *testing.T) {
	big := `{"ActionStatus":"OK","ErrorCode":0,"x":"` + strings.Repeat("x", maxResponse) + `"}`
	tests := []struct {
		name   string
		status int
		body   string
		reason string
		class  Class
	}{
		{"empty", 200, "", ReasonUndecodable, Retry},
		{"no JSON", 200, "<html>", ReasonUndecodable, Retry},
		{"other JSON", 200, "[]", ReasonUndecodable, Retry},
		{"nothing in it", 200, "{}", ReasonUndecodable, Retry},
		{"no code", 200, `{"ActionStatus":"OK"}`, ReasonUndecodable, Retry},
		{"a contradiction", 200, `{"ActionStatus":"FAIL","ErrorCode":0}`, ReasonUndecodable, Retry},
		{"no number", 200, `{"ActionStatus":"FAIL","ErrorCode":{}}`, ReasonUndecodable, Retry},
		{"half", 200, okResponse[:20], ReasonCutOff, Retry},
		{"more than a response can be", 200, big, ReasonUndecodable, Retry},
		{"bad gateway with a response", 502, okResponse, "http-502", Retry},
		{"too many", 429, "", "http-429", Retry},
		{"unauthorized", 401, "", "http-401", HaltRepeated},
		{"forbidden", 403, "<html>", "http-403", HaltRepeated},
		{"not found", 404, "", "http-404", HaltRepeated},
		{"proxy", 407, "", "http-407", HaltRepeated},
		{"for legal reasons", 451, "", "http-451", HaltRepeated},
		{"gone", 410, "", "http-410", Unknown},
		{"no content", 204, "", "http-204", Retry},
	}
	for _, tt := range tests {
		e := call(t, responding(t, tt.status, tt.body))
		if e == nil {
			t.Errorf("%s: got no error", tt.name)
			continue
		}
		if e.Reason() != tt.reason || e.Class() != tt.class || e.Code != 0 {
			t.Errorf("%s: got %s %v %d, want %s %v 0", tt.name, e.Reason(), e.Class(), e.Code, tt.reason, tt.class)
		}
	}
}

// The response of a server in between is reported with its status, without the signature; a response of the API counts whatever
// the status is.
func TestBodyBesideAStatus(t *testing.T) {
	e := call(t, responding(t, 403, "<b>Blocked</b>\nby policy 7, usersig="+strings.Repeat("secret", 20)+strings.Repeat(" more", 5000)))
	want := "create_contact_group: HTTP status 403: <b>Blocked</b> by policy 7, usersig=" + hidden
	if e == nil || !strings.HasPrefix(e.Error(), want) || len(e.Info) > maxText || e.Remedy() == "" {
		t.Errorf("got %v with remedy %q, want %s", e, e.Remedy(), want)
	}
	e = call(t, responding(t, 403, `{"ActionStatus":"FAIL","ErrorCode":60021}`))
	if e == nil || e.Code != 60021 || e.Status != 0 {
		t.Errorf("got %+v, want code 60021", e)
	}
}

func TestResponsesWithACode(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{"ActionStatus":"FAIL","ErrorCode":50002,"ErrorInfo":"bad\u0000name"}`,
			"create_contact_group: 50002 bad parameter: bad name"},
		{`{"ActionStatus":"OK","ErrorCode":51008}`, "create_contact_group: 51008 more than 1,000 conversations"},
		{`{"ActionStatus":"FAIL","ErrorCode":"60007","New":[{}]}`, "create_contact_group: 60007 over the call limit of this command"},
	}
	for _, tt := range tests {
		if e := call(t, responding(t, 200, tt.body)); e == nil || e.Error() != tt.want {
			t.Errorf("got %v, want %s", e, tt.want)
		}
	}
}

func TestResultsStandInTheOrderOfTheRequest(t *testing.T) {
	a, b, g := Item{OneToOne, "a"}, Item{OneToOne, "b"}, Item{GroupChat, "a"}
	result := func(it Item, code int, opt int) string {
		id := "To_Account"
		if it.Type == GroupChat {
			id = "ToGroupId"
		}
		return fmt.Sprintf(`{"ContactOptType":%d,"ContactItem":{"Type":%d,"%s":"%s"},"ResultCode":%d,"ResultInfo":"i%d"}`,
			opt, it.Type, id, it.ID, code, code)
	}
	wrap := func(results ...string) string {
		return `{"GroupResultItem":[{"GroupItem":{"GroupName":"x","GroupId":"12"},"ResultItem":[` + strings.Join(results, ",") +
			`]}],"ActionStatus":"OK","ErrorCode":0}`
	}
	done := func(it Item, code int) ItemResult { return ItemResult{it, code, fmt.Sprintf("i%d", code), true} }
	open := func(it Item) ItemResult { return ItemResult{Item: it} }
	bare := func(it Item) ItemResult { return ItemResult{Item: it, Reported: true} }

	tests := []struct {
		name     string
		response string
		items    []Item
		create   []ItemResult
		groupID  int64
	}{
		{"in order", wrap(result(a, 0, 0), result(b, 51007, 0)), []Item{a, b}, []ItemResult{done(a, 0), done(b, 51007)}, 12},
		{"in another", wrap(result(g, 3, 0), result(b, 2, 0), result(a, 1, 0)), []Item{a, b, g},
			[]ItemResult{done(a, 1), done(b, 2), done(g, 3)}, 12},
		{"half in order", wrap(result(a, 1, 0), result(g, 3, 0), result(b, 2, 0)), []Item{a, b, g},
			[]ItemResult{done(a, 1), done(b, 2), done(g, 3)}, 12},
		{"short", wrap(result(b, 2, 0)), []Item{a, b}, []ItemResult{open(a), done(b, 2)}, 12},
		{"twice asked, once told", wrap(result(a, 1, 0)), []Item{a, a}, []ItemResult{done(a, 1), open(a)}, 12},
		{"twice told", wrap(result(a, 1, 0), result(a, 2, 0), result(b, 0, 0)), []Item{a, b, a},
			[]ItemResult{done(a, 1), done(b, 0), done(a, 2)}, 12},
		{"never asked", wrap(result(g, 0, 0), result(a, 0, 0)), []Item{a}, []ItemResult{done(a, 0)}, 12},
		{"an empty list", wrap(), []Item{a}, []ItemResult{open(a)}, 12},
		{"no list", okResponse, []Item{a}, []ItemResult{open(a)}, 0},
		{"no code", strings.ReplaceAll(wrap(result(a, 0, 0)), `"ResultCode":0,`, ""), []Item{a}, []ItemResult{open(a)}, 12},
		{"no type", strings.ReplaceAll(wrap(result(a, 0, 0)), `"Type":1,`, ""), []Item{a}, []ItemResult{done(a, 0)}, 12},
		{"no type of a group", strings.ReplaceAll(wrap(result(g, 0, 0)), `"Type":2,`, ""), []Item{g}, []ItemResult{done(g, 0)}, 12},
	}
	for _, tt := range tests {
		c := responding(t, 200, tt.response)
		got, err := c.Create(context.Background(), CreateRequest{"u", "g", tt.items})
		if want := (Response{tt.groupID, tt.create}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", tt.name, got, err, want)
		}
	}

	updated := func(list string) string {
		return `{"UpdateType":1,"UpdateGroupResult":` + list + `,"ActionStatus":"OK","ErrorCode":0}`
	}
	members := func(results ...string) string {
		return `{"UpdateGroupType":2,"GroupName":"x","GroupId":5,"ContactResultItem":[` + strings.Join(results, ",") + `]}`
	}
	updates := []struct {
		name     string
		response string
		want     Response
	}{
		{"as documented", updated(members(result(a, 1, 1), result(a, 2, 2))), Response{5, []ItemResult{done(a, 1), done(a, 2)}}},
		{"removed first", updated(members(result(a, 2, 2), result(a, 1, 1))), Response{5, []ItemResult{done(a, 1), done(a, 2)}}},
		{"no operation told", updated(members(result(a, 1, 0), result(a, 2, 0))), Response{5, []ItemResult{done(a, 1), done(a, 2)}}},
		{"short", updated(members(result(a, 2, 2))), Response{5, []ItemResult{open(a), done(a, 2)}}},
		{"empty", updated(members()), Response{5, []ItemResult{open(a), open(a)}}},
		{"in a list", updated("[" + members(result(a, 1, 1), result(a, 2, 2)) + "]"), Response{5, []ItemResult{done(a, 1), done(a, 2)}}},
		{"in create's shape", wrap(result(a, 1, 0), result(a, 2, 0)), Response{12, []ItemResult{done(a, 1), done(a, 2)}}},
		{"no list", updated(`{"GroupId":5}`), Response{5, []ItemResult{bare(a), bare(a)}}},
		{"no result", updated("null"), Response{0, []ItemResult{bare(a), bare(a)}}},
		{"nothing", okResponse, Response{0, []ItemResult{bare(a), bare(a)}}},
	}
	for _, tt := range updates {
		c := responding(t, 200, tt.response)
		got, err := c.Update(context.Background(), UpdateRequest{"u", "g", []Item{a}, []Item{a}})
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("update, %s: got %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
	}
}

func TestGetReadsAPage(t *testing.T) {
	c := responding(t, 200, `{"ContactItem":[{"Type":1,"To_Account":"a","ContactGroupId":[1,2],"Timestamp":5},`+
		`{"Type":2,"ToGroupId":"@g","ContactGroupId":["2"]}],"GroupItem":[{"GroupName":"x","GroupId":1},`+
		`{"GroupName":"y","GroupId":2}],"CompleteFlag":0,"NextStartIndex":100,"ActionStatus":"OK","ErrorCode":0}`)
	got, err := c.Get(context.Background(), "u", 0)
	want := Page{
		Groups:        map[int64]string{1: "x", 2: "y"},
		Conversations: []Membership{{Item{OneToOne, "a"}, []int64{1, 2}}, {Item{GroupChat, "@g"}, []int64{2}}},
		Next:          100,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	c = responding(t, 200, `{"CompleteFlag":1,"ActionStatus":"OK","ErrorCode":0}`)
	if got, err := c.Get(context.Background(), "u", 0); err != nil || !got.Complete {
		t.Errorf("got %+v, %v, want the last page", got, err)
	}
}

func TestDeleteOfNothingIsDone(t *testing.T) {
	if err := responding(t, 200, `{"ActionStatus":"FAIL","ErrorCode":51009}`).Delete(context.Background(), "u", "g"); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if err := responding(t, 200, `{"ActionStatus":"FAIL","ErrorCode":50001}`).Delete(context.Background(), "u", "g"); err == nil {
		t.Error("got no error for 50001")
	}
}

func TestCheck(t *testing.T) {
	code := func(n int) string { return fmt.Sprintf(`{"ActionStatus":"FAIL","ErrorCode":%d}`, n) }
	tests := []struct {
		status int
		body   string
		reason string // "": passes
	}{
		{200, okResponse, ""},
		{200, code(50001), ""},
		{200, code(50002), ""},
		{200, code(60009), ""},
		{404, "", ""},
		{200, code(50003), "50003"},
		{200, code(51013), "51013"},
		{200, code(50004), "50004"},
		{200, code(60003), "60003"},
		{200, code(60012), "60012"},
		{200, code(70001), "70001"},
		{200, code(70009), "70009"},
		{200, code(70107), "70107"},
		{200, code(12345), "12345"},
		{403, "", "http-403"},
		{502, "", "http-502"},
		{200, "?", ReasonUndecodable},
	}
	for _, tt := range tests {
		err := responding(t, tt.status, tt.body).Check(context.Background())
		var e *Error
		reason := ""
		if errors.As(err, &e) {
			reason = e.Reason()
		}
		if reason != tt.reason || (err == nil) != (tt.reason == "") {
			t.Errorf("%d %s: got %v, want %q", tt.status, tt.body, err, tt.reason)
		}
	}
}

func TestNotOneRedirectIsFollowed(t *testing.T) {
	var visits atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		visits.Add(1)
		io.WriteString(w, okResponse)
	}))
	t.Cleanup(other.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"?"+r.URL.RawQuery, status)
		})
		e := call(t, c)
		if e == nil || e.Status != status || e.Class() != Unknown {
			t.Errorf("%d: got %v", status, e)
		}
		expectNoSecret(t, c, e)
	}
	if n := visits.Load(); n != 0 {
		t.Errorf("the other host was visited %d times", n)
	}
}

// expectNoSecret looks for the key and the signature in every form that an error has.
func expectNoSecret(t *testing.T, c *Client, err error) {
	t.Helper()
	var log bytes.Buffer
	var out strings.Builder
	for e := err; e != nil; e = errors.Unwrap(e) {
		slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "err", e)
		slog.New(slog.NewTextHandler(&log, nil)).Error("x", "err", e)
		text, _ := json.Marshal(e)
		fmt.Fprintf(&out, "%v|%+v|%#v|%s|%q|%s\n", e, e, e, e, e, text)
	}
	out.Write(log.Bytes())
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		fmt.Fprintf(&out, verb, c)
	}
	sig := c.sig.Load().text
	for name, secret := range map[string]string{
		"key": testKey.Reveal(), "signature": sig, "escaped signature": url.QueryEscape(sig), "part of the signature": sig[20:60],
	} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the %s is in %s", name, out.String())
		}
	}
	standard := strings.NewReplacer("*", "+", "-", "/", "_", "=").Replace(sig)
	for i := 0; i+16 <= len(sig); i++ {
		if part := standard[i : i+16]; strings.Contains(out.String(), part) {
			t.Fatalf("a part of the signature, %s, is in %s", part, out.String())
		}
	}
	if strings.Contains(out.String(), "pass-word-1") {
		t.Errorf("the password of a proxy is in %s", out.String())
	}
}

func TestNoErrorHoldsASecret(t *testing.T) {
	// A listener whose connections are treated at will, below HTTP.
	raw := func(response func(query string, conn net.Conn)) *Client {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				b := make([]byte, 64<<10)
				n, _ := conn.Read(b)
				line, _, _ := strings.Cut(string(b[:n]), "\r\n")
				response(line, conn)
				conn.Close()
			}
		})
		t.Cleanup(func() { listener.Close(); serving.Wait() })
		return newClient(t, Config{BaseURL: "http://" + listener.Addr().String()})
	}
	const gone = "127.0.0.1:1" // a port that no system gives to anybody who asks for any

	tests := []struct {
		name   string
		client *Client
		reason string
	}{
		{"refused", newClient(t, Config{BaseURL: "http://" + gone}), ReasonRefused},
		{"closed", raw(func(string, net.Conn) {}), ReasonReset},
		{"reset", raw(func(_ string, c net.Conn) { c.(*net.TCPConn).SetLinger(0) }), ReasonReset},
		{"a status line that echoes", raw(func(q string, c net.Conn) { fmt.Fprintf(c, "%s\r\n\r\n", q) }), ReasonNetwork},
		{"a header that echoes", raw(func(q string, c net.Conn) { fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", q) }), ReasonNetwork},
		{"a length that echoes", raw(func(q string, c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n", q)
		}), ReasonNetwork},
		{"half a header", raw(func(_ string, c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-") }), ReasonNetwork},
		{"half a body", raw(func(_ string, c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
		}), ReasonCutOff},
		{"half a chunk", raw(func(_ string, c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n{")
		}), ReasonCutOff},
		{"half a body without a length", raw(func(_ string, c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"ActionStatus\":")
		}), ReasonCutOff},
		{"a bad redirect that echoes", raw(func(q string, c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://%%zz/%s\r\nContent-Length: 0\r\n\r\n", q)
		}), "http-302"},
		{"TLS that is none", newClient(t, Config{BaseURL: "https" + strings.TrimPrefix(responding(t, 200, okResponse).base.String(), "http")}),
			ReasonNetwork},
		{"an info that echoes the query", serve(t, func(w http.ResponseWriter, r *http.Request) {
			info, _ := json.Marshal("bad query " + r.URL.RawQuery)
			fmt.Fprintf(w, `{"ActionStatus":"FAIL","ErrorCode":60002,"ErrorInfo":%s}`, info)
		}), "60002"},
		{"an info that echoes the escaped query", serve(t, func(w http.ResponseWriter, r *http.Request) {
			info, _ := json.Marshal("bad query " + url.QueryEscape(r.URL.RawQuery))
			fmt.Fprintf(w, `{"ActionStatus":"FAIL","ErrorCode":60002,"ErrorInfo":%s}`, info)
		}), "60002"},
		{"an info that echoes the signature", serve(t, func(w http.ResponseWriter, r *http.Request) {
			info, _ := json.Marshal(strings.Repeat("x", 200) + r.URL.Query().Get("usersig"))
			fmt.Fprintf(w, `{"ActionStatus":"FAIL","ErrorCode":70003,"ErrorInfo":%s}`, info)
		}), "70003"},
		{"an info that echoes the signature in standard base64", serve(t, func(w http.ResponseWriter, r *http.Request) {
			sig := strings.NewReplacer("*", "+", "-", "/", "_", "=").Replace(r.URL.Query().Get("usersig"))
			info, _ := json.Marshal(sig + " or " + url.QueryEscape(sig))
			fmt.Fprintf(w, `{"ActionStatus":"FAIL","ErrorCode":70003,"ErrorInfo":%s}`, info)
		}), "70003"},
		{"a proxy that names itself", serve(t, func(w http.ResponseWriter, r *http.Request) {
			sig := strings.NewReplacer("*", "+", "-", `\/`, "_", "=").Replace(r.URL.Query().Get("usersig"))
			w.WriteHeader(502)
			fmt.Fprintf(w, "via http://proxy:pass-word-1@10.0.0.1: %s", sig)
		}), "http-502"},
		{"a body that echoes", serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.RawQuery) }), ReasonUndecodable},
		{"a value of the wrong shape that echoes", serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"GroupResultItem":%q}`, r.URL.RawQuery)
		}), ReasonUndecodable},
	}
	for _, tt := range tests {
		e := call(t, tt.client)
		if e == nil {
			t.Errorf("%s: got no error", tt.name)
			continue
		}
		if e.Reason() != tt.reason {
			t.Errorf("%s: got %s (%v), want %s", tt.name, e.Reason(), e, tt.reason)
		}
		expectNoSecret(t, tt.client, e)
	}
}

func TestItemInfoHoldsNoSecret(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"GroupResultItem":[{"ResultItem":[{"ContactItem":{"Type":1,"To_Account":"a"},"ResultCode":50002,`+
			`"ResultInfo":%q}]}],"ActionStatus":"OK","ErrorCode":0}`, "see "+r.URL.RawQuery)
	})
	a, err := c.Create(context.Background(), CreateRequest{"u", "g", []Item{{OneToOne, "a"}}})
	if err != nil || len(a.Items) != 1 || !strings.HasPrefix(a.Items[0].Info, "see sdkappid=") {
		t.Fatalf("got %+v, %v", a, err)
	}
	if strings.Contains(a.Items[0].Info, c.sig.Load().text[:40]) {
		t.Errorf("the signature is in %q", a.Items[0].Info)
	}
}

// TestReadyUserSigOfAnyLookIsHidden has a signature that only its own text gives away.
func TestReadyUserSigOfAnyLookIsHidden(t *testing.T) {
	const ready = "a/signature+of*another-version"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		echo := r.URL.Query().Get("usersig")
		fmt.Fprintf(w, `{"ActionStatus":"FAIL","ErrorCode":70003,"ErrorInfo":"bad %s or %s"}`, echo, url.QueryEscape(echo))
	}))
	t.Cleanup(server.Close)
	e := call(t, newClient(t, Config{BaseURL: server.URL, UserSig: ready}))
	if e == nil || e.Info != "bad (secret) or (secret)" {
		t.Errorf("got %v, want both hidden", e)
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() { close(release); server.Close() })

	c := newClient(t, Config{BaseURL: server.URL, Timeout: 20 * time.Millisecond})
	e := call(t, c)
	if e == nil || e.Reason() != ReasonTimeout || !e.Transport() || errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("timeout: got %v", e)
	}
	expectNoSecret(t, c, e)
	<-arrived

	c = newClient(t, Config{BaseURL: server.URL})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-arrived; cancel() }()
	_, err := c.Get(ctx, "u", 0)
	if !errors.As(err, &e) || !errors.Is(err, context.Canceled) || e.Reason() != ReasonCancelled || e.Transport() {
		t.Errorf("cancel: got %v", err)
	}
	expectNoSecret(t, c, err)

	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = c.Get(ctx, "u", 0)
	if !errors.As(err, &e) || !errors.Is(err, context.DeadlineExceeded) || e.Reason() != ReasonTimeout {
		t.Errorf("deadline: got %v", err)
	}

	_, err = c.Get(ctx, "u", 0) // the context has ended before
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline before the call: got %v", err)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var opened atomic.Int32
	replies := []func(http.ResponseWriter){
		func(w http.ResponseWriter) { io.WriteString(w, okResponse) },
		func(w http.ResponseWriter) { io.WriteString(w, "no JSON"+strings.Repeat(" ", 10_000)) },
		func(w http.ResponseWriter) { http.Error(w, strings.Repeat("x", 10_000), http.StatusBadGateway) },
		func(w http.ResponseWriter) { io.WriteString(w, `{"ActionStatus":"FAIL","ErrorCode":50002}`) },
	}
	n := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		replies[n%len(replies)](w)
		n++
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	c := newClient(t, Config{BaseURL: server.URL})
	for range 8 {
		call(t, c)
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("got %d connections, want 1", got)
	}
}

func TestSignatureIsRenewed(t *testing.T) {
	var sigs []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		sigs = append(sigs, r.URL.Query().Get("usersig"))
		io.WriteString(w, okResponse)
	})
	if left := time.Until(c.SigExpiry()); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("lifetime: got %v, want 24h", left)
	}
	call(t, c)
	// As if three quarters of the lifetime were over.
	old := *c.sig.Load()
	old.text, old.query, old.renewAt = "old", strings.ReplaceAll(old.query, old.text, "old"), time.Now().Add(-time.Second)
	c.sig.Store(&old)
	call(t, c)
	if got := VerifyUserSig(sigs[1], testKey, testApp, DefaultAdmin, time.Now()); got != 0 {
		t.Errorf("after the time to renew: got %d, want 0", got)
	}
	if at := c.sig.Load().renewAt; time.Until(at) < 17*time.Hour || time.Until(at) > 18*time.Hour {
		t.Errorf("renewal: got in %v, want in 18h", time.Until(at))
	}
	// A standby makes no call: its UserSig is renewed when somebody asks how long it lasts.
	old.expiry = time.Now().Add(time.Hour)
	c.sig.Store(&old)
	if left := time.Until(c.SigExpiry()); left < 23*time.Hour {
		t.Errorf("after the time to renew, without a call: got %v left, want 24h", left)
	}
	c.sig.Store(&old)
	if err := c.Renew(); err != nil || c.sig.Load() == &old {
		t.Errorf("renew: got %v and the old signature: %v", err, c.sig.Load() == &old)
	}
}

func TestReadyUserSig(t *testing.T) {
	ready := SignUserSig(testKey, testApp, DefaultAdmin, day, time.Hour)
	c := newClient(t, Config{BaseURL: "https://h", UserSig: ready})
	if got, want := c.SigExpiry(), day.Add(time.Hour); !got.Equal(want) {
		t.Errorf("expiry: got %v, want %v", got, want)
	}
	if err := c.Renew(); err == nil {
		t.Error("renew: got no error")
	}
	if got := c.signature().text; got != ready.Reveal() {
		t.Error("an expired UserSig was replaced although there is no key")
	}
	c = newClient(t, Config{BaseURL: "https://h", UserSig: "of-another-version"})
	if got := c.SigExpiry(); !got.IsZero() {
		t.Errorf("expiry: got %v, want none", got)
	}
}

func TestRegions(t *testing.T) {
	for _, name := range Regions() {
		got, err := RegionURL(name)
		if err != nil || InsecureURL(got) {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
		if _, err := New(Config{BaseURL: got, SDKAppID: 1, SecretKey: "k"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, _ := RegionURL("frankfurt"); got != "https://adminapiger.im.qcloud.com" {
		t.Errorf("frankfurt: got %s", got)
	}
	_, err := RegionURL("mars")
	for _, name := range Regions() {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s in it", err, name)
		}
	}
}

func TestInsecureURL(t *testing.T) {
	for u, want := range map[string]bool{
		"https://console.tim.qq.com": false, "http://console.tim.qq.com": true, "HTTP://10.0.0.1:80": true,
		"http://127.0.0.1:9478": false, "http://127.1.2.3": false, "http://localhost:1": false, "http://[::1]:1": false,
		"http://localhost.example": true, "http://simulator:9478": true, "::": false,
	} {
		if got := InsecureURL(u); got != want {
			t.Errorf("%s: got %v, want %v", u, got, want)
		}
	}
}

// TestOnTrip checks that a round trip is the way there and back, without what it takes to connect.
func TestOnTrip(t *testing.T) {
	const respondAfter = 30 * time.Millisecond
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(respondAfter)
		io.WriteString(w, `{"ActionStatus":"OK","ErrorCode":0,"GroupItem":[],"ContactItem":[],"CompleteFlag":1}`)
	}))
	defer server.Close()
	var mu sync.Mutex
	var trips []time.Duration
	c, err := New(Config{BaseURL: server.URL, SDKAppID: 1, SecretKey: "k", OnTrip: func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		trips = append(trips, d)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		start := time.Now()
		if _, err := c.Get(t.Context(), "u", 0); err != nil {
			t.Fatal(err)
		}
		whole := time.Since(start)
		mu.Lock()
		if d := trips[len(trips)-1]; d < respondAfter || d > whole {
			t.Errorf("got a round trip of %v, want %v to %v, the whole call", d, respondAfter, whole)
		}
		mu.Unlock()
	}
	if len(trips) != 3 {
		t.Errorf("heard of %d round trips, want 3", len(trips))
	}
}
