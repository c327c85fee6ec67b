package chatsim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/chat"
)

// start returns a running simulator and a client of it.
func start(t testing.TB, c Config) (*Sim, *chat.Client, string) {
	t.Helper()
	sim := New(c)
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	return sim, client(t, chat.Config{BaseURL: url}), url
}

func client(t testing.TB, c chat.Config) *chat.Client {
	t.Helper()
	if c.SDKAppID == 0 {
		c.SDKAppID = DemoSDKAppID
	}
	if c.SecretKey == "" && c.UserSig == "" {
		c.SecretKey = DemoSecretKey
	}
	client, err := chat.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// users makes conversations with users, numbered from first.
func users(first, n int) []chat.Item {
	items := make([]chat.Item, n)
	for i := range items {
		items[i] = chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("user%04d", first+i)}
	}
	return items
}

func create(c *chat.Client, user, group string, items ...chat.Item) (chat.Response, error) {
	return c.Create(context.Background(), chat.CreateRequest{FromAccount: user, GroupName: group, Items: items})
}

func add(c *chat.Client, user, group string, items ...chat.Item) (chat.Response, error) {
	return c.Update(context.Background(), chat.UpdateRequest{FromAccount: user, GroupName: group, Add: items})
}

// codeOf returns the code or reason of the error of a call, "ok" for none.
func codeOf(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return "ok"
	}
	var e *chat.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %T %v, want *chat.Error", err, err)
	}
	return e.Reason()
}

func expectCode(t testing.TB, what string, err error, want string) {
	t.Helper()
	if got := codeOf(t, err); got != want {
		t.Errorf("%s: got %s (%v), want %s", what, got, err, want)
	}
}

func expectState(t testing.TB, s *Sim, user, group string, want ...chat.Item) {
	t.Helper()
	got := s.State()[user][group]
	want = slices.Clone(want)
	slices.SortFunc(want, compareItems)
	if !slices.Equal(got, want) {
		t.Errorf("%s/%s: got %v, want %v", user, group, got, want)
	}
}

func TestCallsChangeGroups(t *testing.T) {
	sim, c, _ := start(t, Config{})
	ctx := context.Background()
	g := chat.Item{Type: chat.GroupChat, ID: "@TGS#1"}
	a, err := create(c, "u", "first", append(users(0, 2), g)...)
	expectCode(t, "create", err, "ok")
	if a.GroupID != 1 || len(a.Items) != 3 || a.Items[2] != (chat.ItemResult{Item: g, Reported: true}) {
		t.Errorf("create: got %+v", a)
	}
	a, err = c.Update(ctx, chat.UpdateRequest{FromAccount: "u", GroupName: "first", Add: users(1, 2), Remove: []chat.Item{g, {Type: 1, ID: "x"}}})
	expectCode(t, "update", err, "ok")
	if a.GroupID != 1 || len(a.Items) != 4 {
		t.Errorf("update: got %+v", a)
	}
	for _, r := range a.Items {
		if r.Code != 0 || !r.Reported {
			t.Errorf("update: got %+v, want done", r)
		}
	}
	expectState(t, sim, "u", "first", users(0, 3)...)
	_, err = create(c, "u", "second", users(0, 1)...)
	expectCode(t, "second", err, "ok")

	page, err := c.Get(ctx, "u", 0)
	want := chat.Page{
		Groups: map[int64]string{1: "first", 2: "second"}, Complete: true,
		Conversations: []chat.Membership{
			{Item: users(0, 1)[0], GroupIDs: []int64{1, 2}},
			{Item: users(1, 1)[0], GroupIDs: []int64{1}},
			{Item: users(2, 1)[0], GroupIDs: []int64{1}},
		},
	}
	if err != nil || !reflect.DeepEqual(page, want) {
		t.Errorf("get: got %+v, %v, want %+v", page, err, want)
	}

	expectCode(t, "delete", c.Delete(ctx, "u", "second"), "ok")
	expectCode(t, "delete again", c.Delete(ctx, "u", "second"), "ok") // the client takes 51009 for done
	_, err = add(c, "u", "second", g)
	expectCode(t, "update of no group", err, "51009")

	l := sim.Ledger()
	wantLedger := Ledger{
		Users: 1, Groups: 1, Conversations: 3, Added: 5, Readded: 1, Removed: 2, Deleted: 1, MostAtOnce: 1,
		Commands: map[chat.Command]Calls{
			chat.CreateContactGroup: {Calls: 2, OK: 2},
			chat.UpdateContactGroup: {Calls: 2, OK: 1, Failed: 1},
			chat.GetContactGroup:    {Calls: 1, OK: 1},
			chat.DelContactGroup:    {Calls: 2, OK: 1, Failed: 1},
		},
	}
	for command, calls := range l.Commands { // how fast the calls came is not for this test
		calls.MaxPerSecond, calls.MaxPer100ms, calls.Seconds = 0, 0, 0
		l.Commands[command] = calls
	}
	if !reflect.DeepEqual(l, wantLedger) {
		t.Errorf("ledger: got %+v, want %+v", l, wantLedger)
	}
}

func TestRename(t *testing.T) {
	sim, c, url := start(t, Config{})
	create(c, "u", "old", users(0, 1)...)
	create(c, "u", "other", users(0, 1)...)
	rename := func(to string) string {
		return fmt.Sprintf(`{"From_Account":"u","UpdateType":1,"UpdateGroup":{"UpdateGroupType":1,"OldGroupName":"old","NewGroupName":%q}}`, to)
	}
	for _, tt := range []struct {
		to   string
		code int
	}{{"", 51011}, {"other", 50002}, {"new", 0}, {"again", 51009}} {
		if got := post(t, url, chat.UpdateContactGroup, goodQuery(), rename(tt.to)); got != tt.code {
			t.Errorf("to %q: got %d, want %d", tt.to, got, tt.code)
		}
	}
	expectState(t, sim, "u", "new", users(0, 1)...)
	if l := sim.Ledger(); l.Renamed != 1 {
		t.Errorf("got %d groups renamed, want 1", l.Renamed)
	}
}

// Under Fold, names that differ in case or Unicode form are those of one group, which has the name that it was given last.
func TestNames(t *testing.T) {
	for _, names := range []Names{Exact, Fold} {
		sim, c, _ := start(t, Config{Names: names})
		ctx := t.Context()
		create(c, "u", "Caf\u00e9", users(0, 2)...)
		_, err := add(c, "u", "cafe\u0301", users(2, 1)...)
		renamed := c.Rename(ctx, chat.RenameRequest{FromAccount: "u", OldName: "CAF\u00c9", NewName: "CAFE"})
		deleted := c.Delete(ctx, "u", "cafe")
		code, want, groups := "51009", "51009", 1
		if names == Fold {
			code, want, groups = "ok", "ok", 0
		}
		expectCode(t, string(names)+": update", err, code)
		expectCode(t, string(names)+": rename", renamed, want)
		expectCode(t, string(names)+": delete", deleted, "ok")
		if l := sim.Ledger(); l.Groups != groups || l.Added-l.Removed != l.Conversations || l.BadRequests != 0 {
			t.Errorf("%s: got %d groups and %+v, want %d groups", names, l.Groups, l, groups)
		}
		create(c, "u", "Work", users(0, 1)...)
		err = c.Rename(ctx, chat.RenameRequest{FromAccount: "u", OldName: "Work", NewName: "work"})
		expectCode(t, string(names)+": another case", err, "ok")
		expectState(t, sim, "u", "work", users(0, 1)...)
	}
}

func TestExistingGroup(t *testing.T) {
	tests := []struct {
		config Config
		code   string
		want   []chat.Item
	}{
		{Config{}, "ok", users(0, 3)},
		{Config{Existing: Append}, "ok", users(0, 3)},
		{Config{Existing: Replace}, "ok", users(1, 2)},
		{Config{Existing: Refuse}, "50002", users(0, 2)},
		{Config{Existing: Refuse, RefuseCode: 51099}, "51099", users(0, 2)},
	}
	for _, tt := range tests {
		sim, c, _ := start(t, tt.config)
		_, err := create(c, "u", "g", users(0, 2)...)
		expectCode(t, "first", err, "ok")
		_, err = create(c, "u", "g", users(1, 2)...)
		expectCode(t, string(tt.config.Existing), err, tt.code)
		expectState(t, sim, "u", "g", tt.want...)
		if n := sim.Ledger().BadRequests; n != 0 {
			t.Errorf("%s: got %d bad requests, want 0", tt.config.Existing, n)
		}
	}
}

func TestLimits(t *testing.T) {
	id := func(n int) string { return strings.Repeat("i", n) }
	user := func(id string) chat.Item { return chat.Item{Type: chat.OneToOne, ID: id} }
	group := func(id string) chat.Item { return chat.Item{Type: chat.GroupChat, ID: id} }
	tests := []struct {
		name        string
		user, group string
		items       []chat.Item
		want        string
	}{
		{"none", "u", "g", nil, "51006"},
		{"one", "u", "g", users(0, 1), "ok"},
		{"100", "u", "g", users(0, 100), "ok"},
		{"101", "u", "g", users(0, 101), "51006"},
		{"name of 32", "u", id(32), users(0, 1), "ok"},
		{"name of 33", "u", id(33), users(0, 1), "51011"},
		{"name of 32 bytes in 16 letters", "u", strings.Repeat("é", 16), users(0, 1), "ok"},
		{"name of 34 bytes in 17 letters", "u", strings.Repeat("é", 17), users(0, 1), "51011"},
		{"no name", "u", "", users(0, 1), "51011"},
		{"user of 32", id(32), "g", users(0, 1), "ok"},
		{"user of 33", id(33), "g", users(0, 1), "50002"},
		{"no user", "", "g", users(0, 1), "50002"},
		{"user not ASCII", "é", "g", users(0, 1), "50002"},
		{"user not printable", "a\tb", "g", users(0, 1), "50002"},
		{"to user of 32", "u", "g", []chat.Item{user(id(32))}, "ok"},
		{"to user of 33", "u", "g", []chat.Item{user(id(33))}, "50002"},
		{"to nobody", "u", "g", []chat.Item{user("")}, "50002"},
		{"to group of 48", "u", "g", []chat.Item{group(id(48))}, "ok"},
		{"to group of 49", "u", "g", []chat.Item{group(id(49))}, "50002"},
		{"to no group", "u", "g", []chat.Item{group("")}, "50002"},
		{"type 3", "u", "g", []chat.Item{{Type: 3, ID: "x"}}, "50002"},
	}
	for _, tt := range tests {
		sim, c, _ := start(t, Config{})
		_, err := create(c, tt.user, tt.group, tt.items...)
		expectCode(t, "create, "+tt.name, err, tt.want)
		bad := tt.want != "ok"
		l := sim.Ledger()
		if (l.BadRequests == 1) != bad || (len(sim.State()) == 0) != bad {
			t.Errorf("%s: got %d bad requests and state %v", tt.name, l.BadRequests, sim.State())
		}
		if bad && (len(l.BadSamples) != 1 || l.BadSamples[0].Reason == "" || fmt.Sprint(l.BadSamples[0].Code) != tt.want) {
			t.Errorf("%s: got samples %+v", tt.name, l.BadSamples)
		}
		if !bad {
			continue
		}
		if _, err = create(c, "u", "g", user("first")); err != nil {
			t.Fatal(err)
		}
		_, err = add(c, tt.user, tt.group, tt.items...)
		expectCode(t, "update, "+tt.name, err, tt.want)
		expectState(t, sim, "u", "g", user("first"))
	}
}

func TestGroupIsFullAt1000(t *testing.T) {
	sim, c, _ := start(t, Config{Rate: -1})
	create(c, "u", "g", users(0, 100)...)
	for i := 100; i < 1000; i += 100 {
		_, err := add(c, "u", "g", users(i, 100)...)
		expectCode(t, "add", err, "ok")
	}
	_, err := add(c, "u", "g", users(1000, 1)...)
	expectCode(t, "1001st by update", err, "51008")
	_, err = create(c, "u", "g", users(950, 51)...)
	expectCode(t, "1001st by create", err, "51008")
	_, err = add(c, "u", "g", users(900, 100)...)
	expectCode(t, "those that are there", err, "ok")
	_, err = c.Update(context.Background(), chat.UpdateRequest{
		FromAccount: "u", GroupName: "g", Add: users(1000, 2), Remove: users(0, 2),
	})
	expectCode(t, "two for two", err, "ok")
	twice := append(users(1002, 1), users(1002, 1)...)
	_, err = c.Update(context.Background(), chat.UpdateRequest{FromAccount: "u", GroupName: "g", Add: twice, Remove: users(2, 1)})
	expectCode(t, "one, said twice, for one", err, "ok")
	if n := len(sim.State()["u"]["g"]); n != 1000 {
		t.Errorf("got %d, want 1000", n)
	}
}

func TestUserHas20Groups(t *testing.T) {
	sim, c, _ := start(t, Config{})
	for i := range 20 {
		_, err := create(c, "u", fmt.Sprint("g", i), users(0, 1)...)
		expectCode(t, "create", err, "ok")
	}
	_, err := create(c, "u", "g20", users(0, 1)...)
	expectCode(t, "21st", err, "51010")
	_, err = create(c, "u", "g7", users(1, 1)...)
	expectCode(t, "one that is there", err, "ok")
	_, err = create(c, "other", "g20", users(0, 1)...)
	expectCode(t, "of another user", err, "ok")
	if n := len(sim.State()["u"]); n != 20 {
		t.Errorf("got %d groups, want 20", n)
	}
}

func goodQuery() map[string]string {
	sig := chat.SignUserSig(DemoSecretKey, DemoSDKAppID, chat.DefaultAdmin, time.Now(), time.Hour)
	return map[string]string{
		"sdkappid": fmt.Sprint(DemoSDKAppID), "identifier": chat.DefaultAdmin, "usersig": sig.Reveal(), "random": "1", "contenttype": "json",
	}
}

// post makes a call by hand and gives the ErrorCode, or the HTTP status where that is not 200.
func post(t *testing.T, url string, command chat.Command, query map[string]string, body string) int {
	t.Helper()
	request, err := http.NewRequest("POST", url+chat.PathPrefix+string(command), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	values := request.URL.Query()
	for k, v := range query {
		values.Set(k, v)
	}
	request.URL.RawQuery = values.Encode()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		return response.StatusCode
	}
	var a struct{ ErrorCode int }
	if err := json.NewDecoder(response.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a.ErrorCode
}

func TestWhoMayCall(t *testing.T) {
	sim, _, url := start(t, Config{})
	sign := func(key chat.Secret, app uint64, id string, at time.Time) string {
		return chat.SignUserSig(key, app, id, at, time.Hour).Reveal()
	}
	now := time.Now()
	const body = `{"From_Account":"u"}`
	tests := []struct {
		name  string
		key   string
		value string
		want  int
	}{
		{"as it should be", "random", "4294967295", 0},
		{"no app", "sdkappid", "", 60012},
		{"another app", "sdkappid", "7", 60006},
		{"no number", "sdkappid", "x", 60006},
		{"nobody", "identifier", "", 60002},
		{"another account", "identifier", "somebody", 70013},
		{"no random", "random", "", 60002},
		{"random of 33 bits", "random", "4294967296", 60002},
		{"xml", "contenttype", "xml", 60002},
		{"no signature", "usersig", "", 70002},
		{"no signature at all", "usersig", "abc", 70003},
		{"signed for another app", "usersig", sign(DemoSecretKey, 7, chat.DefaultAdmin, now), 70014},
		{"signed for another account", "usersig", sign(DemoSecretKey, DemoSDKAppID, "x", now), 70013},
		{"expired", "usersig", sign(DemoSecretKey, DemoSDKAppID, chat.DefaultAdmin, now.Add(-2*time.Hour)), 70001},
		{"another key", "usersig", sign("x", DemoSDKAppID, chat.DefaultAdmin, now), 70009},
	}
	for _, tt := range tests {
		query := goodQuery()
		query[tt.key] = tt.value
		before := sim.Ledger().BadRequests
		if got := post(t, url, chat.GetContactGroup, query, body); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
		if got, want := sim.Ledger().BadRequests-before, min(tt.want, 1); got != want {
			t.Errorf("%s: got %d bad requests, want %d", tt.name, got, want)
		}
	}
	query := goodQuery()
	query["identifier"], query["usersig"] = "user", sign(DemoSecretKey, DemoSDKAppID, "user", now)
	if got := post(t, url, chat.GetContactGroup, query, body); got != 50003 {
		t.Errorf("no admin: got %d, want 50003", got)
	}
	for _, s := range sim.Ledger().BadSamples {
		if strings.Contains(s.Reason, "eJ") {
			t.Errorf("a signature is in %q", s.Reason)
		}
	}
}

func TestASignatureThatWasGoodExpires(t *testing.T) {
	sim := New(Config{})
	now := time.Now()
	sig := chat.SignUserSig(DemoSecretKey, DemoSDKAppID, "a", now, time.Minute).Reveal()
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {time.Minute, 0}, {61 * time.Second, 70001}, {0, 0}} {
		if got := sim.verify("a", sig, now.Add(tt.after)); got != tt.want {
			t.Errorf("after %v: got %d, want %d", tt.after, got, tt.want)
		}
	}
	if got := sim.verify("b", sig, now); got != 70013 {
		t.Errorf("for another account: got %d, want 70013", got)
	}
	if err := sim.Configure(func(c *Config) { c.SecretKey = "new" }); err != nil {
		t.Fatal(err)
	}
	if got := sim.verify("a", sig, now); got != 70009 {
		t.Errorf("after a change of the key: got %d, want 70009", got)
	}
}

func TestRequestsThatAreNone(t *testing.T) {
	sim, _, url := start(t, Config{})
	item := `{"Type":1,"To_Account":"a"}`
	groups := func(list string) string { return `{"From_Account":"u","GroupContactItem":[` + list + `]}` }
	group := `{"GroupName":"g","ContactItem":[` + item + `]}`
	update := func(kind, opt int) string {
		return fmt.Sprintf(`{"From_Account":"u","UpdateType":1,"UpdateGroup":{"UpdateGroupType":%d,"OldGroupName":"g",`+
			`"ContactUpdateItem":[{"ContactOptType":%d,"ContactItem":%s}]}}`, kind, opt, item)
	}
	tests := []struct {
		command chat.Command
		body    string
		want    int
	}{
		{chat.CreateContactGroup, groups(group), 0},
		{chat.CreateContactGroup, "", 60003},
		{chat.CreateContactGroup, "{", 60003},
		{chat.CreateContactGroup, "[]", 60003},
		{chat.CreateContactGroup, `{"From_Account":1}`, 60003},
		{chat.CreateContactGroup, "{}" + strings.Repeat(" ", maxBody), 60003},
		{chat.CreateContactGroup, "{}", 50002},
		{chat.CreateContactGroup, groups(""), 50002},
		{chat.CreateContactGroup, groups(group + "," + group), 50002},
		{chat.UpdateContactGroup, update(2, 1), 0},
		{chat.UpdateContactGroup, update(2, 2), 0},
		{chat.UpdateContactGroup, update(2, 3), 50002},
		{chat.UpdateContactGroup, update(3, 1), 50002},
		{chat.UpdateContactGroup, strings.Replace(update(2, 1), `"UpdateType":1`, `"UpdateType":2`, 1), 50002},
		{chat.DelContactGroup, `{"From_Account":"u","GroupName":[]}`, 50002},
		{chat.DelContactGroup, `{"From_Account":"u","GroupName":["g","h"]}`, 50002},
		{chat.DelContactGroup, `{"From_Account":"u","GroupName":[""]}`, 51011},
		{chat.DelContactGroup, `{"From_Account":"u","GroupName":["none"]}`, 51009},
		{chat.GetContactGroup, `{"From_Account":"u","StartIndex":-1}`, 50002},
		{"no_such_command", groups(group), 404},
	}
	for _, tt := range tests {
		if got := post(t, url, tt.command, goodQuery(), tt.body); got != tt.want {
			t.Errorf("%s %.60s: got %d, want %d", tt.command, tt.body, got, tt.want)
		}
	}
	response, err := http.Get(url + chat.PathPrefix + string(chat.GetContactGroup))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 405 {
		t.Errorf("GET: got %d, want 405", response.StatusCode)
	}
	l := sim.Ledger()
	bad := 1 // the GET
	for _, tt := range tests {
		if tt.want != 0 && tt.want != 404 && tt.want != 51009 {
			bad++
		}
	}
	if l.NotFound != 1 || l.BadRequests != bad || len(l.BadSamples) != min(bad, maxSamples) {
		t.Errorf("got %d not found, %d bad, %d samples, want 1, %d", l.NotFound, l.BadRequests, len(l.BadSamples), bad)
	}
}

func TestEveryFault(t *testing.T) {
	tests := []struct {
		fault   string
		code    string
		applied bool
	}{
		{"50004", "50004", false},
		{"60007", "60007", false},
		{"51013", "51013", false},
		{"http-502", "http-502", false},
		{"http-429", "http-429", false},
		{"http-404", "http-404", false},
		{"reset", chat.ReasonReset, false},
		{"hang", chat.ReasonTimeout, false},
		{"lost", chat.ReasonReset, true},
		{"cut", chat.ReasonCutOff, true},
		{"garbage", chat.ReasonUndecodable, true},
	}
	for _, tt := range tests {
		t.Run(tt.fault, func(t *testing.T) {
			f, err := ParseFault(tt.fault + "+1")
			if err != nil {
				t.Fatal(err)
			}
			sim, c, url := start(t, Config{Faults: []Fault{f}})
			if tt.fault == Hang {
				c = client(t, chat.Config{BaseURL: url, Timeout: 50 * time.Millisecond})
			}
			_, err = create(c, "u", "g", users(0, 3)...)
			expectCode(t, "struck", err, tt.code)
			if tt.applied {
				expectState(t, sim, "u", "g", users(0, 3)...)
			} else {
				expectState(t, sim, "u", "g")
			}
			c = client(t, chat.Config{BaseURL: url})
			_, err = create(c, "u", "g", users(0, 3)...)
			expectCode(t, "after", err, "ok")
			expectState(t, sim, "u", "g", users(0, 3)...)
			l := sim.Ledger()
			calls := l.Commands[chat.CreateContactGroup]
			if calls.Calls != 2 || calls.OK != 1 || calls.Faulted != 1 || l.BadRequests != 0 || l.MostAtOnce != 1 {
				t.Errorf("got %+v", l)
			}
		})
	}
}

func TestCutOfARejectionToo(t *testing.T) {
	_, c, _ := start(t, Config{Existing: Refuse, Faults: []Fault{{Kind: Cut, After: 1, For: 1}}})
	create(c, "u", "g", users(0, 1)...)
	_, err := create(c, "u", "g", users(0, 1)...)
	expectCode(t, "cut", err, chat.ReasonCutOff)
}

// A call that is applied late changes the groups after its caller was told that the connection is gone, and after
// whatever came meanwhile.
func TestLate(t *testing.T) {
	sim, c, _ := start(t, Config{
		Existing: Replace, Late: 50 * time.Millisecond, Faults: []Fault{{Kind: Late, For: 1}},
	})
	_, err := create(c, "u", "g", users(0, 3)...)
	expectCode(t, "struck", err, chat.ReasonReset)
	expectState(t, sim, "u", "g")
	_, err = create(c, "u", "g", users(3, 5)...)
	expectCode(t, "after", err, "ok")
	for len(sim.State()["u"]["g"]) != 3 {
		time.Sleep(time.Millisecond)
	}
	expectState(t, sim, "u", "g", users(0, 3)...)
}

func TestFaultOfOneCommand(t *testing.T) {
	_, c, _ := start(t, Config{Faults: []Fault{{Command: chat.UpdateContactGroup, Kind: "http-404", After: 1, For: 1}}})
	for i, want := range []string{"51009", "http-404", "51009"} {
		_, err := create(c, "u", "g", users(0, 1)...)
		expectCode(t, "create", err, "ok")
		_, err = c.Update(t.Context(), chat.UpdateRequest{FromAccount: "u", GroupName: "other", Add: users(0, 1)})
		expectCode(t, fmt.Sprint("update ", i), err, want)
	}
}

func TestItemFaults(t *testing.T) {
	sim, c, _ := start(t, Config{
		Faults:  []Fault{{Kind: "item-51007", Share: 0.5}},
		FailIDs: map[string]int{"user0003": 50001, "blocked": 70051},
		Seed:    1,
	})
	a, err := create(c, "u", "g", users(0, 100)...)
	expectCode(t, "create", err, "ok")
	var in []chat.Item
	count := make(map[int]int)
	for _, r := range a.Items {
		count[r.Code]++
		if r.Code == 0 {
			in = append(in, r.Item)
		}
	}
	expectState(t, sim, "u", "g", in...)
	if count[50001] != 1 || a.Items[3].Code != 50001 || count[51007] < 20 || count[51007] > 80 || len(count) != 3 {
		t.Errorf("got %v", count)
	}
	if l := sim.Ledger(); l.ItemsFailed != 100-len(in) || l.Added != len(in) || l.Commands[chat.CreateContactGroup].OK != 1 {
		t.Errorf("got %+v", l)
	}
	_, err = create(c, "blocked", "g", users(0, 1)...)
	expectCode(t, "user that fails", err, "70051")
	expectState(t, sim, "blocked", "g")
}

func TestFaultsBeginAndEnd(t *testing.T) {
	_, c, _ := start(t, Config{Faults: []Fault{
		{Kind: "51013", After: 2, For: 2}, {Kind: "50004", After: 3},
	}})
	var got []string
	for range 6 {
		_, err := create(c, "u", "g", users(0, 1)...)
		got = append(got, codeOf(t, err))
	}
	want := []string{"ok", "ok", "51013", "51013", "50004", "50004"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSeedRepeats(t *testing.T) {
	run := func(seed uint64) (codes []string) {
		_, c, _ := start(t, Config{Seed: seed, Jitter: time.Microsecond, Faults: []Fault{
			{Kind: "50004", Share: 0.3}, {Kind: Garbage, Share: 0.3}, {Kind: "item-51007", Share: 0.3},
		}})
		for range 40 {
			a, err := create(c, "u", "g", users(0, 3)...)
			codes = append(codes, fmt.Sprint(codeOf(t, err), a.Items))
		}
		return codes
	}
	first := run(1)
	if again := run(1); !slices.Equal(first, again) {
		t.Errorf("got %v, want %v", again, first)
	}
	if other := run(2); slices.Equal(first, other) {
		t.Error("another seed gave the same")
	}
}

func TestNotOffered(t *testing.T) {
	for _, code := range []int{0, 60009} {
		sim, c, _ := start(t, Config{NoUpdate: true, NoGet: true, NoDelete: true, NotOfferedCode: code})
		_, err := create(c, "u", "g", users(0, 1)...)
		expectCode(t, "create", err, "ok")
		_, updated := add(c, "u", "g", users(0, 1)...)
		_, got := c.Get(context.Background(), "u", 0)
		for _, err := range []error{updated, got, c.Delete(context.Background(), "u", "g")} {
			var e *chat.Error
			if !errors.As(err, &e) || !e.NotOffered() || e.Code != code {
				t.Errorf("code %d: got %v", code, err)
			}
		}
		expectCode(t, "check", c.Check(context.Background()), "ok")
		if l := sim.Ledger(); l.BadRequests != 0 || l.Commands[chat.UpdateContactGroup].Failed != 1 {
			t.Errorf("got %+v", l)
		}
	}
}

func TestCheckFindsWhatStopsEveryJob(t *testing.T) {
	for want, c := range map[string]Config{
		"ok": {}, "51013": {Edition: Standard}, "60016": {Disabled: true}, "50003": {Admins: []string{"boss"}},
		"70009": {SecretKey: "another"}, "60006": {SDKAppID: 7},
	} {
		_, client, _ := start(t, c)
		expectCode(t, want, client.Check(context.Background()), want)
	}
}

func TestPages(t *testing.T) {
	_, c, _ := start(t, Config{PageSize: 40})
	create(c, "u", "g", users(0, 100)...)
	var got []chat.Item
	var sizes []int
	for start, complete := int64(0), false; !complete; {
		p, err := c.Get(context.Background(), "u", start)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Conversations {
			got = append(got, m.Item)
		}
		sizes = append(sizes, len(p.Conversations))
		start, complete = p.Next, p.Complete
	}
	if !slices.Equal(got, users(0, 100)) || !slices.Equal(sizes, []int{40, 40, 20}) {
		t.Errorf("got pages of %v with %v", sizes, got)
	}
	p, err := c.Get(context.Background(), "nobody", 0)
	if err != nil || !p.Complete || len(p.Conversations) != 0 {
		t.Errorf("nobody: got %+v, %v", p, err)
	}
}

// A list that is cut short has no last page.
func TestListLimit(t *testing.T) {
	_, c, _ := start(t, Config{PageSize: 40, ListLimit: 50})
	create(c, "u", "g", users(0, 51)...)
	create(c, "v", "g", users(0, 50)...)
	var got [][2]int64
	for _, at := range []int64{0, 40, 50} {
		p, err := c.Get(context.Background(), "u", at)
		if err != nil || p.Complete {
			t.Errorf("from %d: got %+v, %v; want a page that is not the last", at, p, err)
		}
		got = append(got, [2]int64{int64(len(p.Conversations)), p.Next})
	}
	if want := [][2]int64{{40, 40}, {10, 50}, {0, 50}}; !slices.Equal(got, want) {
		t.Errorf("got pages of, and next ones at, %v; want %v", got, want)
	}
	if p, err := c.Get(context.Background(), "v", 40); err != nil || !p.Complete {
		t.Errorf("as long as the limit: got %+v, %v; want the last page", p, err)
	}
}

// at is a moment of the tests of the windows.
func at(d time.Duration) time.Time { return time.Unix(0, 0).Add(d) }

func TestWindow(t *testing.T) {
	const ms = time.Millisecond
	w := window{span: time.Second}
	for i, tt := range []struct {
		at     time.Duration
		before int
	}{
		{0, 0}, {0, 1}, {500 * ms, 2}, {999 * ms, 3}, {1000 * ms, 2}, {1000*ms + 1, 3}, {1499 * ms, 4}, {1500 * ms, 4},
		{5000 * ms, 0}, {5001 * ms, 1},
	} {
		if got := w.add(at(tt.at)); got != tt.before {
			t.Errorf("event %d at %v: got %d before, want %d", i, tt.at, got, tt.before)
		}
	}
	if w.max != 5 {
		t.Errorf("most: got %d, want 5", w.max)
	}
}

// TestWindowAgainstCounting compares with a count over all events.
func TestWindowAgainstCounting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := window{span: time.Second}
	var all []time.Time
	now := at(0)
	most := 0
	for range 20_000 {
		now = now.Add(time.Duration(rng.ExpFloat64() * float64(10*time.Millisecond)))
		want := 0
		for i := len(all) - 1; i >= 0 && now.Sub(all[i]) < time.Second; i-- {
			want++
		}
		all = append(all, now)
		most = max(most, want+1)
		if got := w.add(now); got != want {
			t.Fatalf("at %v: got %d, want %d", now, got, want)
		}
		if cap(w.times) > 1024 {
			t.Fatalf("the window grew to %d", cap(w.times))
		}
	}
	if w.max != most {
		t.Errorf("most: got %d, want %d", w.max, most)
	}
}

func TestBookThrottles(t *testing.T) {
	type arrival struct {
		at      time.Duration
		command chat.Command
		want    int
	}
	const ms = time.Millisecond
	c, u := chat.CreateContactGroup, chat.UpdateContactGroup
	tests := []struct {
		name          string
		rate, appRate int
		arrivals      []arrival
		overLimit     int // of create
	}{
		{"a command", 2, 0, []arrival{
			{0, c, 0}, {1 * ms, c, 0}, {2 * ms, c, 60007}, {3 * ms, u, 0}, {999 * ms, c, 60007}, {1000 * ms, c, 0}, {1001 * ms, c, 0},
			{1002 * ms, c, 60007},
		}, 5},
		{"the app", 2, 3, []arrival{{0, c, 0}, {0, c, 0}, {0, u, 0}, {0, u, 60011}, {0, c, 60007}, {1000 * ms, u, 0}}, 1},
		{"no limit", -1, 0, []arrival{{0, c, 0}, {0, c, 0}, {0, c, 0}}, 0},
	}
	for _, tt := range tests {
		b := newBook()
		for i, a := range tt.arrivals {
			if got := b.arrive(a.command, at(a.at), tt.rate, tt.appRate); got != a.want {
				t.Errorf("%s: arrival %d: got %d, want %d", tt.name, i, got, a.want)
			}
		}
		if got := b.commands[c].OverLimit; got != tt.overLimit {
			t.Errorf("%s: over the limit: got %d, want %d", tt.name, got, tt.overLimit)
		}
	}
}

func TestSecondsFromFirstToLast(t *testing.T) {
	s := New(Config{})
	const ms = time.Millisecond
	for _, a := range []struct {
		at      time.Duration
		command chat.Command
	}{{0, chat.GetContactGroup}, {100 * ms, chat.CreateContactGroup}, {200 * ms, chat.CreateContactGroup},
		{350 * ms, chat.CreateContactGroup}, {900 * ms, chat.GetContactGroup}} {
		s.book.arrive(a.command, at(a.at), -1, 0)
	}
	for command, want := range map[chat.Command]float64{
		chat.CreateContactGroup: 0.25, chat.GetContactGroup: 0.9, chat.UpdateContactGroup: 0,
	} {
		if got := s.Ledger().Commands[command].Seconds; got != want {
			t.Errorf("%s: got %v s, want %v", command, got, want)
		}
	}
}

func TestThrottledCallIsNotApplied(t *testing.T) {
	sim, c, _ := start(t, Config{Rate: 1})
	done := 0
	for i := range 3 { // more than one in a second, however slow the machine, unless each takes half of it
		_, err := create(c, fmt.Sprint("u", i), "g", users(0, 1)...)
		if w := codeOf(t, err); w == "ok" {
			done++
		} else if w != "60007" {
			t.Errorf("got %s, want 60007", w)
		}
	}
	l := sim.Ledger()
	calls := l.Commands[chat.CreateContactGroup]
	if len(sim.State()) != done || calls.OK != done || calls.Throttled != 3-done || calls.Calls != 3 || l.BadRequests != 0 {
		t.Errorf("got %+v with %d done", l, done)
	}
	if calls.MaxPerSecond < 1 || calls.OverLimit < calls.Throttled {
		t.Errorf("got %+v", calls)
	}
}

func TestOverlapOfOneUser(t *testing.T) {
	for _, tt := range []struct {
		user func(int) string
		want int
	}{
		{func(int) string { return "u" }, 4},
		{func(i int) string { return fmt.Sprint("u", i) }, 1},
	} {
		// The calls end together when all have arrived, which the ledger tells.
		sim, c, _ := start(t, Config{Latency: time.Hour})
		var calls sync.WaitGroup
		for i := range 4 {
			calls.Go(func() { create(c, tt.user(i), "g", users(0, 1)...) })
		}
		inFlight := func() (n int) {
			sim.mu.Lock()
			defer sim.mu.Unlock()
			for _, c := range sim.current {
				n += c
			}
			return n
		}
		for inFlight() < 4 {
			time.Sleep(time.Millisecond)
		}
		sim.Close()
		calls.Wait()
		if got := sim.Ledger().MostAtOnce; got != tt.want {
			t.Errorf("got %d at once, want %d", got, tt.want)
		}
		if n := inFlight(); n != 0 {
			t.Errorf("got %d in flight after the end, want 0", n)
		}
	}
}

// TestOneAfterAnotherIsNoOverlap guards the moment at which a user is free: before his response is sent.
func TestOneAfterAnotherIsNoOverlap(t *testing.T) {
	sim, c, _ := start(t, Config{Rate: -1})
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			for range 100 {
				if _, err := create(c, fmt.Sprint("u", i), "g", users(0, 100)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	calls.Wait()
	l := sim.Ledger()
	if l.MostAtOnce != 1 || l.Commands[chat.CreateContactGroup].OK != 400 || l.Conversations != 400 {
		t.Errorf("got %+v", l)
	}
}

func TestLatency(t *testing.T) {
	_, c, _ := start(t, Config{Latency: 30 * time.Millisecond, Jitter: 5 * time.Millisecond})
	began := time.Now()
	_, err := create(c, "u", "g", users(0, 1)...)
	if took := time.Since(began); err != nil || took < 25*time.Millisecond {
		t.Errorf("got %v after %v, want at least 25ms", err, took)
	}
}

// ask makes a request of the simulator itself.
func ask(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

func TestControl(t *testing.T) {
	sim, c, url := start(t, Config{Faults: []Fault{{Kind: "51013"}}, FailIDs: map[string]int{"a": 50001}})
	try := func(user string) string {
		_, err := create(c, user, "g", users(0, 1)...)
		return codeOf(t, err)
	}
	steps := []struct {
		body   string
		status int
		user   string
		want   string
	}{
		{`{}`, 204, "u", "51013"},
		{`{"faults":[]}`, 204, "u", "ok"},
		{`{}`, 204, "a", "50001"},
		{`{"fail_ids":{"b":50002}}`, 204, "b", "50002"},
		{`{}`, 204, "a", "50001"},
		{`{"fail_ids":{"a":0}}`, 204, "a", "ok"},
		{`{"existing":"refuse"}`, 204, "u", "50002"},
		{`{"existing":"sometimes"}`, 400, "u", "50002"},
		{`{"fault":["50004"]}`, 400, "c", "ok"},
		{`{"faults":["nonsense"]}`, 400, "d", "ok"},
		{`no JSON`, 400, "e", "ok"},
		{`{"faults":["50004:1@1"]}`, 204, "f", "ok"},
		{`{"latency":"1ms","jitter":1000}`, 204, "g", "50004"}, // the count continues: the faults are as they were
		{`{"faults":["http-503"],"edition":"standard"}`, 204, "h", "51013"},
		{`{"edition":"ultimate"}`, 204, "h", "http-503"},
		{`{"faults":[],"secret_key":"(secret)"}`, 204, "h", "ok"},
		{`{"secret_key":"another"}`, 204, "h", "70009"},
	}
	for i, step := range steps {
		if status, text := ask(t, "POST", url+"/control", step.body); status != step.status {
			t.Errorf("step %d %s: got %d %s, want %d", i, step.body, status, text, step.status)
		}
		if got := try(step.user); got != step.want {
			t.Errorf("step %d %s: got %s, want %s", i, step.body, got, step.want)
		}
	}
	if sim.set.Latency != time.Millisecond || sim.set.Jitter != time.Microsecond {
		t.Errorf("got %v and %v, want 1ms and 1µs", sim.set.Latency, sim.set.Jitter)
	}

	if status, _ := ask(t, "POST", url+"/reset", ""); status != 204 {
		t.Errorf("reset: got %d, want 204", status)
	}
	if len(sim.State()) != 0 || sim.Ledger().Commands[chat.CreateContactGroup].Calls != 0 {
		t.Errorf("after reset: got %v, %+v", sim.State(), sim.Ledger())
	}
	for _, request := range []string{"GET /control", "GET /reset", "POST /state", "GET /", "POST /v4/recentcontact/"} {
		method, path, _ := strings.Cut(request, " ")
		if status, _ := ask(t, method, url+path, "{}"); status != 404 {
			t.Errorf("%s: got %d, want 404", request, status)
		}
	}
}

func TestControlFromAnotherMachine(t *testing.T) {
	sim := New(Config{})
	for _, path := range []string{"/control", "/reset"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", path, strings.NewReader(`{"disabled":true}`)) // comes from 192.0.2.1
		sim.ServeHTTP(w, r)
		if w.Code != 403 || sim.set.Disabled {
			t.Errorf("%s: got %d, want 403", path, w.Code)
		}
	}
}

func TestLedgerAndStateAsJSON(t *testing.T) {
	sim, c, url := start(t, Config{})
	create(c, "u", "g", users(0, 2)...)
	create(c, "u", "", users(0, 1)...)
	var l Ledger
	var state map[string]map[string][]chat.Item
	for path, into := range map[string]any{"/ledger": &l, "/state": &state} {
		status, text := ask(t, "GET", url+path, "")
		if err := json.Unmarshal([]byte(text), into); err != nil || status != 200 {
			t.Errorf("%s: got %d %s: %v", path, status, text, err)
		}
	}
	if !reflect.DeepEqual(l, sim.Ledger()) {
		t.Errorf("got %+v, want %+v", l, sim.Ledger())
	}
	if !reflect.DeepEqual(state, sim.State()) {
		t.Errorf("got %v, want %v", state, sim.State())
	}
}

func TestConfigAsJSON(t *testing.T) {
	c := Config{
		SDKAppID: 1, Admins: []string{"a"}, Rate: 5, Existing: Refuse, Names: Fold, NoUpdate: true, Edition: Standard, Latency: time.Second,
		Jitter: time.Millisecond, Faults: []Fault{{Kind: Lost, Share: 0.05, After: 1, For: 2}}, FailIDs: map[string]int{"x": 50001},
		Seed: 9,
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("got %+v, %v from %s, want %+v", got, err, text, c)
	}
	c.SecretKey = "hush"
	if text, err = json.Marshal(c); err != nil || bytes.Contains(text, []byte("hush")) {
		t.Errorf("got %s, %v", text, err)
	}
}

func TestValidate(t *testing.T) {
	for field, c := range map[string]Config{
		"existing": {Existing: "x"}, "names": {Names: "x"}, "edition": {Edition: "x"}, "not_offered_code": {NotOfferedCode: 1}, "app_rate": {AppRate: -1},
		"latency": {Latency: -1}, "jitter": {Jitter: -1}, "page_size": {PageSize: -1}, "list_limit": {ListLimit: -1}, "admins": {Admins: []string{""}},
		"faults": {Faults: []Fault{{Kind: "x"}}},
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("got %v, want an error about %s", err, field)
		}
	}
	if err := (&Config{}).Validate(); err != nil {
		t.Errorf("the zero value: got %v", err)
	}
}

func TestAConfigIsNotShared(t *testing.T) {
	given := Config{FailIDs: map[string]int{"a": 50001}, Admins: []string{"x"}, Faults: []Fault{{Kind: Lost}}}
	sim := New(given)
	given.FailIDs["b"], given.Admins[0], given.Faults[0].Kind = 50001, "y", Cut
	err := sim.Configure(func(c *Config) {
		c.FailIDs["c"], c.Admins[0], c.Faults[0].Kind = 50001, "z", Cut
		c.Edition = "none" // so that nothing of it may count
	})
	if err == nil {
		t.Error("got no error")
	}
	if s := sim.set; len(s.FailIDs) != 1 || s.Admins[0] != "x" || s.Faults[0].Kind != Lost {
		t.Errorf("got %+v", s.Config)
	}
}

func TestStartAndClose(t *testing.T) {
	sim := New(Config{Faults: []Fault{{Kind: Hang}}})
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sim.Start("127.0.0.1:0"); err == nil {
		t.Error("a second start: got no error")
	}
	other := New(Config{})
	if _, err := other.Start(strings.TrimPrefix(url, "http://")); err == nil {
		t.Error("an address in use: got no error")
	}
	other.Close()

	// Close ends a call that hangs.
	c := client(t, chat.Config{BaseURL: url, Timeout: time.Hour})
	ended := make(chan error)
	go func() { _, err := create(c, "u", "g", users(0, 1)...); ended <- err }()
	for sim.Ledger().Commands[chat.CreateContactGroup].Faulted == 0 {
		time.Sleep(time.Millisecond)
	}
	sim.Close()
	sim.Close()
	expectCode(t, "hanging at the close", <-ended, chat.ReasonReset)
	_, err = create(c, "u", "g", users(0, 1)...)
	expectCode(t, "after the close", err, chat.ReasonRefused)
}

func TestHint(t *testing.T) {
	got := New(Config{}).Hint("http://127.0.0.1:9478")
	want := "export GROUPFERRY_API_URL=http://127.0.0.1:9478\nexport GROUPFERRY_SDK_APP_ID=1400000000\n" +
		"export GROUPFERRY_SECRET_KEY=" + DemoSecretKey + "\n"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	got = New(Config{SecretKey: "hush", Admins: []string{"it's me"}}).Hint("http://h")
	if strings.Contains(got, "hush") || !strings.Contains(got, "--secret-key-file") || !strings.Contains(got, `GROUPFERRY_ADMIN='it'\''s me'`) {
		t.Errorf("got %s", got)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, n := range []int{1, 20, 100} {
		b.Run(fmt.Sprintf("%d conversations", n), func(b *testing.B) {
			_, client, _ := start(b, Config{Rate: -1})
			items := users(0, n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := create(client, "u", "g", items...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
