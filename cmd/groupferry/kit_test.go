package main

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

var update = flag.Bool("update", false, "write the golden files anew")

// root is the directory of the module as seen from here.
const root = "../.."

// testKey is a secret that nothing may ever repeat.
const testKey = "a-key-that-only-these-tests-know-6b1f0c5e9d2a"

// transcriptEnv names a file to which the program, run as a process, adds all that it prints.
const transcriptEnv = "GROUPFERRY_TEST_TRANSCRIPT"

// patience bounds every wait for something that happens in no time on an idle machine.
const patience = time.Minute

// testRevision stands for what the linker says about a release.
const testRevision = "0123abc"

// TestMain lets this binary be groupferry itself when it is called by that name, so that a test can kill it.
func TestMain(m *testing.M) {
	// The tests wait more than they work, so more of them than there are processors can run at once. The long ones have
	// fleets of processes each.
	parallel := "12"
	if longtest.Asked() {
		parallel = "5"
	}
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	buildRevision = testRevision
	onExit = listedExit
	completionTime = patience
	commands := map[string]func(){"groupferry": reenter}
	maps.Copy(commands, scaleCommands)
	testscript.Main(m, commands)
}

// listedExit reports an exit code that the help of its command does not list: by itself, and by another code, which no test
// expects. So what each command line of each test ends with is in that list.
func listedExit(cmd *cobra.Command, code int) int {
	if !isListed(cmd, code) {
		fmt.Fprintf(os.Stderr, "%s ended with code %d, which its --help does not list\n", cmd.CommandPath(), code)
		return unlistedExit
	}
	return code
}

func isListed(cmd *cobra.Command, code int) bool {
	_, listed := exitsOf(cmd)[code]
	return listed || cmd.Hidden // what completes is called by shells alone
}

const unlistedExit = 99

// wallEnv names a file with the time by which the wall clock of a process is off, as time.ParseDuration takes it.
const wallEnv = "GROUPFERRY_TEST_WALL_CLOCK"

// reenter is main, but for the transcript and the wall clock.
func reenter() {
	if name := os.Getenv(wallEnv); name != "" {
		wallClock = func() time.Time {
			b, _ := os.ReadFile(name)
			off, _ := time.ParseDuration(strings.TrimSpace(string(b)))
			return time.Now().Add(off)
		}
	}
	name := os.Getenv(transcriptEnv)
	if name == "" {
		main()
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(signals, os.Args[1:], os.LookupEnv, os.Stdin, io.MultiWriter(os.Stdout, f), io.MultiWriter(os.Stderr, f)))
}

// A state is what the app holds: user, group name, conversations sorted by type and id.
type state = map[string]map[string][]chat.Item

// A row is one conversation of a group, as an input has it.
type row struct {
	user, group string
	item        chat.Item
}

func stateOf(rows []row) state {
	s := state{}
	for _, r := range rows {
		if s[r.user] == nil {
			s[r.user] = map[string][]chat.Item{}
		}
		s[r.user][r.group] = append(s[r.user][r.group], r.item)
	}
	for _, groups := range s {
		for name, items := range groups {
			slices.SortFunc(items, func(a, b chat.Item) int {
				return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ID, b.ID))
			})
			groups[name] = slices.Compact(items)
		}
	}
	return s
}

// rowsOf is the inverse of stateOf.
func rowsOf(s state) map[row]bool {
	rows := map[row]bool{}
	for user, groups := range s {
		for group, items := range groups {
			for _, it := range items {
				rows[row{user, group, it}] = true
			}
		}
	}
	return rows
}

// differences tells in a few lines how got is not want; "" when it is.
func differences(got, want state) string {
	var d []string
	have, need := rowsOf(got), rowsOf(want)
	for r := range need {
		if !have[r] {
			d = append(d, fmt.Sprintf("missing %+v", r))
		}
	}
	for r := range have {
		if !need[r] {
			d = append(d, fmt.Sprintf("too many %+v", r))
		}
	}
	slices.Sort(d)
	if most := 10; len(d) > most {
		d = append(d[:most], fmt.Sprintf("and %d more", len(d)-most))
	}
	return strings.Join(d, "\n")
}

func checkState(t testing.TB, sim *chatsim.Sim, want state) {
	t.Helper()
	if d := differences(sim.State(), want); d != "" {
		t.Errorf("state of the app:\n%s", d)
	}
}

// readRows reads a CSV or a JSONL input without a flaw in it, by other means than the importer's.
func readRows(path string) ([]row, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(path) == ".jsonl" {
		return readJSONRows(b)
	}
	records, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, r := range records[1:] {
		it := chat.Item{Type: chat.OneToOne, ID: r[3]}
		if r[2] == "2" {
			it = chat.Item{Type: chat.GroupChat, ID: r[4]}
		}
		rows = append(rows, row{r[0], r[1], it})
	}
	return rows, nil
}

func readJSONRows(b []byte) ([]row, error) {
	type contact struct {
		User  string `json:"To_Account"`
		Group string `json:"ToGroupId"`
	}
	item := func(user, group string) chat.Item {
		if group != "" {
			return chat.Item{Type: chat.GroupChat, ID: group}
		}
		return chat.Item{Type: chat.OneToOne, ID: user}
	}
	var rows []row
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var line struct {
			From      string `json:"from_account"`
			GroupName string `json:"group_name"`
			User      string `json:"to_account"`
			Group     string `json:"to_group_id"`
			Body      string `json:"From_Account"`
			Groups    []struct {
				GroupName   string
				ContactItem []contact
			} `json:"GroupContactItem"`
		}
		switch err := d.Decode(&line); {
		case err == io.EOF:
			return rows, nil
		case err != nil:
			return nil, err
		}
		if line.From != "" {
			rows = append(rows, row{line.From, line.GroupName, item(line.User, line.Group)})
		}
		for _, g := range line.Groups {
			for _, c := range g.ContactItem {
				rows = append(rows, row{line.Body, g.GroupName, item(c.User, c.Group)})
			}
		}
	}
}

// names are what people call their groups: several scripts, and what CSV has to quote.
var names = []string{
	"Family", "家族", "Друзья", "العائلة", "परिवार", "🎲 Board games", `The "A" team`, "Climbing, Tuesdays", "同事 · 北京",
	`"`, ",", `"",""`, "'", `back\slash`, "trailing,", "Ελλάδα", "한국 친구", "ครอบครัว", "<b>&amp;</b>", "%s %d",
}

// makeRows makes one group of each size, of users with up to 20 groups, with conversations of both types, and shuffles
// the rows. The same arguments give the same rows.
func makeRows(seed uint64, sizes ...int) []row {
	rng := rand.New(rand.NewPCG(seed, 1))
	var rows []row
	for i, size := range sizes {
		user := fmt.Sprintf("user-%d", i/len(names))
		if size >= chat.MaxConversationsPerGroup {
			user = fmt.Sprintf("collector-%d", i) // over all groups a user has 1,000 conversations
		}
		for k := range size {
			it := chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("friend-%d", k)}
			if k%3 == 2 {
				it = chat.Item{Type: chat.GroupChat, ID: fmt.Sprintf("@TGS#%d", k)}
			}
			rows = append(rows, row{user, names[i%len(names)], it})
		}
	}
	rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	return rows
}

// writeRows writes a CSV file and returns its path.
func writeRows(t testing.TB, rows []row) string {
	t.Helper()
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Write([]string{"from_account", "group_name", "type", "to_account", "to_group_id"})
	for _, r := range rows {
		fields := []string{r.user, r.group, strconv.Itoa(r.item.Type), r.item.ID, ""}
		if r.item.Type == chat.GroupChat {
			fields[3], fields[4] = "", r.item.ID
		}
		w.Write(fields)
	}
	w.Flush()
	path := filepath.Join(t.TempDir(), "input.csv")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startSim starts a simulator in this process that knows [testKey], and does not count calls unless cfg says so.
func startSim(t testing.TB, cfg chatsim.Config) (sim *chatsim.Sim, url string) {
	t.Helper()
	if cfg.SecretKey == "" {
		cfg.SecretKey = testKey
	}
	if cfg.Rate == 0 {
		cfg.Rate = -1
	}
	sim = chatsim.New(cfg)
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	return sim, url
}

func created(s *chatsim.Sim) int { return s.Ledger().Commands[chat.CreateContactGroup].Calls }

// A shell calls the program in this process, with an environment and a data directory of its own. Whatever is called
// there and whatever it leaves behind holds no secret, or the test fails.
type shell struct {
	t   testing.TB
	env map[string]string
	dir string // data directory

	stdin          io.Reader // for start; nil is empty
	stdout, stderr io.Writer // for start; nil is that of the call

	program string // for spawn; "" is the test binary
}

func newShell(t testing.TB, apiURL string) *shell {
	t.Helper()
	s := &shell{t: t, dir: filepath.Join(t.TempDir(), "data"), env: map[string]string{
		"GROUPFERRY_API_URL":    apiURL,
		"GROUPFERRY_SDK_APP_ID": strconv.Itoa(chatsim.DemoSDKAppID),
		"GROUPFERRY_SECRET_KEY": testKey,
		"GROUPFERRY_RATE":       "100000",
		"GROUPFERRY_APP_LIMIT":  "100000",
	}}
	s.env["GROUPFERRY_DATA_DIR"] = s.dir
	t.Cleanup(func() {
		if leak := leakBelow(s.dir); leak != "" {
			t.Errorf("a secret is in the data directory: %s", leak)
		}
	})
	return s
}

// A call is a run of the program that may still be under way.
type call struct {
	t       testing.TB
	args    []string
	signals chan os.Signal
	done    chan struct{}

	code           int // once done is closed
	stdout, stderr buffer
}

func (s *shell) start(args ...string) *call {
	c := &call{t: s.t, args: args, signals: make(chan os.Signal, 2), done: make(chan struct{})}
	getenv := func(name string) (string, bool) {
		v, ok := s.env[name]
		return v, ok
	}
	var stdin io.Reader = strings.NewReader("")
	var stdout, stderr io.Writer = &c.stdout, &c.stderr
	if s.stdin != nil {
		stdin = s.stdin
	}
	if s.stdout != nil {
		stdout = s.stdout
	}
	if s.stderr != nil {
		stderr = s.stderr
	}
	go func() {
		defer close(c.done)
		c.code = run(c.signals, args, getenv, stdin, stdout, stderr)
	}()
	return c
}

// wait waits for the end and checks how it ended.
func (c *call) wait(code int) *call {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(2 * patience):
		c.t.Fatalf("groupferry %q does not end; so far:\n%s\n%s", c.args, &c.stdout, &c.stderr)
	}
	if leak := leakIn(c.stdout.String() + c.stderr.String()); leak != "" {
		c.t.Errorf("groupferry %q: printed a secret: %s", c.args, leak)
	}
	if c.code != code {
		c.t.Fatalf("groupferry %q: got exit code %d, want %d\n%s\n%s", c.args, c.code, code, &c.stdout, &c.stderr)
	}
	return c
}

// run calls the program and checks its exit code.
func (s *shell) run(code int, args ...string) *call {
	s.t.Helper()
	return s.start(args...).wait(code)
}

// lastLine is where an unfinished run names the command that continues.
func (c *call) lastLine() string {
	lines := strings.Split(strings.TrimSpace(c.stderr.String()), "\n")
	return lines[len(lines)-1]
}

// resumeCommand takes the command out of the last line, which begins with intro, and gives its arguments.
func (c *call) resumeCommand(intro string) []string {
	c.t.Helper()
	command, found := strings.CutPrefix(c.lastLine(), "groupferry: "+intro+": groupferry ")
	if !found {
		c.t.Fatalf("last line: got %q, want it to begin with %q", c.lastLine(), intro)
	}
	args, err := shellWords(command)
	if err != nil {
		c.t.Fatal(err)
	}
	return args
}

func (c *call) wantErr(texts ...string) *call {
	c.t.Helper()
	for _, text := range texts {
		if !strings.Contains(c.stderr.String(), text) {
			c.t.Errorf("groupferry %q: got no %q on standard error:\n%s", c.args, text, &c.stderr)
		}
	}
	return c
}

// report decodes what run --output json reports.
func (c *call) report() (r struct {
	app.ImportStatus
	Run app.RunReport `json:"run"`
}) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.stdout.String()), &r); err != nil {
		c.t.Fatalf("report: %v\n%s", err, &c.stdout)
	}
	return r
}

// openStore opens the queue beside the program, to look at it.
func openStore(t testing.TB, cfg broker.Config) *app.Namespace {
	t.Helper()
	conn, err := broker.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	q, err := queue.Open(t.Context(), conn)
	if err != nil {
		conn.Close()
		t.Fatal(err)
	}
	return &app.Namespace{Queue: q, Conn: conn}
}

// open opens the queue of the shell beside the program, to look at it.
func (s *shell) open() *app.Namespace {
	s.t.Helper()
	return openStore(s.t, broker.Config{DataDir: s.dir})
}

// onQueue counts the jobs of an import that have no result, the ones in flight included; 0 when it was never begun.
func (s *shell) onQueue(importID string) int64 {
	s.t.Helper()
	q := s.open()
	defer q.Close()
	return pendingJobs(s.t, q, importID)
}

// pendingJobs counts the jobs of an import that are on the queue and have no result.
func pendingJobs(t testing.TB, q *app.Namespace, importID string) int64 {
	t.Helper()
	p, err := q.Progress(t.Context(), importID)
	if errors.Is(err, queue.ErrNoImport) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	if p.Import.State.Over() {
		return 0
	}
	return p.Pending + p.InFlight
}

// results reads what the command results writes about jobs with a result, with the flags given; each conversation has to be
// there once.
func (s *shell) results(importID string, flags ...string) map[row]app.ResultLine {
	s.t.Helper()
	c := s.start(append([]string{"results", importID, "--output", "jsonl"}, flags...)...)
	<-c.done
	code := exitDone
	if strings.Contains(c.stderr.String(), "was cancelled before they were on the queue") {
		code = exitFailed
	}
	c.wait(code)
	all := map[row]app.ResultLine{}
	for d := json.NewDecoder(strings.NewReader(c.stdout.String())); ; {
		var l app.ResultLine
		switch err := d.Decode(&l); {
		case err == io.EOF:
			return all
		case err != nil:
			s.t.Fatal(err)
		}
		if l.Outcome == app.OutcomeDropped {
			continue
		}
		r := row{l.FromAccount, l.GroupName, chat.Item{Type: l.Type, ID: cmp.Or(l.ToAccount, l.ToGroupID)}}
		if _, twice := all[r]; twice {
			s.t.Errorf("results: got %+v twice", r)
		}
		all[r] = l
	}
}

// A buffer can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until something is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// sigLook finds a UserSig by its look: compressed JSON begins with these two characters, and is longer than the digests
// of a server, which may begin so, too. In a URL it may be escaped.
var sigLook = regexp.MustCompile(`eJ(?:[A-Za-z0-9*_-]|%2[aA]){60,}|(?i)usersig(?:=|%3d)[^\s&*]`)

// leakIn returns a secret that stands in text, or "".
func leakIn(text string, more ...string) string {
	for _, secret := range append(more, testKey) {
		if secret != "" && strings.Contains(text, secret) {
			return secret
		}
	}
	return sigLook.FindString(text)
}

// secretsDir is where the scripts keep their own secrets, which leakBelow leaves out.
const secretsDir = ".secrets"

// leakBelow looks for secrets in all files under dir and in their names.
func leakBelow(dir string, more ...string) string {
	leak := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone, or never there
		}
		if d.IsDir() && d.Name() == secretsDir {
			return fs.SkipDir
		}
		text := path
		if d.Type().IsRegular() {
			if b, err := os.ReadFile(path); err == nil {
				text += "\n" + string(b)
			}
		}
		if found := leakIn(text, more...); found != "" {
			leak = path + ": " + found
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return leak
}

// A guard that finds nothing is none.
func TestLeaks(t *testing.T) {
	sig := chat.SignUserSig(testKey, chatsim.DemoSDKAppID, chat.DefaultAdmin, time.Now(), time.Hour).Reveal()
	for _, text := range []string{
		"key " + testKey, "POST /v4?usersig=" + sig + "&random=1", "sig: " + sig, strings.ReplaceAll(sig, "*", "%2A"), "&usersig=short",
	} {
		if leakIn(text) == "" {
			t.Errorf("got no leak in %q, want one", text)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("\x00\x01"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if leakBelow(dir) == "" {
			t.Errorf("got no leak in a file with %q, want one", text)
		}
	}
	for _, text := range []string{"", "give --usersig-file", "the UserSig is made from the key", "usersig=***"} {
		if got := leakIn(text); got != "" {
			t.Errorf("%q: got leak %q, want none", text, got)
		}
	}
}

// shellWords splits a line as a POSIX shell does, quotes and backslashes included; what a shell would do more with
// (variables, pipes) ends the words.
func shellWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false
	end := func() {
		if in {
			words = append(words, word.String())
		}
		word.Reset()
		in = false
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case ' ', '\t':
			end()
		case '\'', '"':
			n := strings.IndexByte(line[i+1:], c)
			if n < 0 {
				return nil, fmt.Errorf("%q: an open quote", line)
			}
			word.WriteString(line[i+1 : i+1+n])
			i += n + 1
			in = true
		case '\\':
			if i++; i < len(line) {
				word.WriteByte(line[i])
				in = true
			}
		case '|', '>', '<', '&', ';':
			end()
			return words, nil
		case '#':
			if !in {
				return words, nil
			}
			word.WriteByte(c)
		default:
			word.WriteByte(c)
			in = true
		}
	}
	end()
	return words, nil
}

func TestShellWords(t *testing.T) {
	tests := []struct {
		line string
		want []string
	}{
		{"run a.csv  b.csv", []string{"run", "a.csv", "b.csv"}},
		{`run 'it'\''s here.csv' "two words" ''`, []string{"run", "it's here.csv", "two words", ""}},
		{"check a.csv # what it would do", []string{"check", "a.csv"}},
		{"results x --failed > failed.csv", []string{"results", "x", "--failed"}},
		{"resume && groupferry work", []string{"resume"}},
		{"--fault 51013@50 a#b", []string{"--fault", "51013@50", "a#b"}},
	}
	for _, test := range tests {
		got, err := shellWords(test.line)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, %v, want %q", test.line, got, err, test.want)
		}
		for _, word := range test.want {
			if back, err := shellWords(quoted(word)); err != nil || !slices.Equal(back, []string{word}) {
				t.Errorf("quoted %q: got %q, %v", word, back, err)
			}
		}
	}
}
