package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/governor"
	"groupferry/internal/page"
	"groupferry/internal/queue"
	"groupferry/internal/redact"
	"groupferry/worker"
)

// envPrefix and a flag's name in capitals make the name of its environment variable.
const envPrefix = "GROUPFERRY_"

// Secrets have no flag: the arguments of a process are for all to see.
const (
	envSecretKey = envPrefix + "SECRET_KEY"
	envUserSig   = envPrefix + "USERSIG"
)

// envAnnotation of a flag names a variable of its own, where that of its name is another setting; "-" is none.
const envAnnotation = "groupferry_env"

// envName returns the environment variable of a flag.
func envName(f *pflag.Flag) string {
	if own := f.Annotations[envAnnotation]; len(own) > 0 {
		return own[0]
	}
	name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	if strings.HasPrefix(name, "NATS_") {
		return name
	}
	return envPrefix + name
}

// rivals has, for each flag, what answers the same question: the variables of those are not read when the flag is given.
var rivals = map[string][]string{
	"region":          {"api-url", "simulate"},
	"api-url":         {"region", "simulate"},
	"simulate":        {"region", "api-url", "nats-url", "nats-creds", "nats-context"},
	"secret-key-file": {"usersig-file", envSecretKey, envUserSig},
	"usersig-file":    {"secret-key-file", envSecretKey, envUserSig},
	"nats-url":        {"nats-context", "data-dir"},
	"nats-context":    {"nats-url", "nats-creds", "data-dir"},
	"data-dir":        {"nats-url", "nats-creds", "nats-context"},
}

// fromEnvironment sets the flags that were not given, and then the console, which every command has.
func (p *program) fromEnvironment(cmd *cobra.Command) error {
	p.given, p.fromEnv, p.unread = map[string]bool{}, map[string]string{}, map[string]bool{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		p.given[f.Name] = true
		if value := f.Value.String(); value == "" || value == "false" {
			return
		}
		for _, rival := range rivals[f.Name] {
			p.unread[rival] = true
		}
	})
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err != nil || f.Changed || p.unread[f.Name] || f.Name == "help" || f.Name == "version" || envName(f) == "-" {
			return
		}
		if value, ok := p.getenv(envName(f)); ok && value != "" {
			p.fromEnv[f.Name] = envName(f)
			if e := cmd.Flags().Set(f.Name, value); e != nil {
				err = usagef("%s: %w", envName(f), e)
			}
		}
	})
	if err == nil {
		err = p.setConsole(cmd)
	}
	if err == nil {
		err = p.checkChoices(cmd)
	}
	return err
}

// named is what people call a setting: the flag, or the variable that it came from.
func (p *program) named(flag string) string {
	if env := p.fromEnv[flag]; env != "" {
		return env
	}
	return "--" + flag
}

// secretEnv reads a secret from the environment, unless a flag goes before it.
func (p *program) secretEnv(name string) chat.Secret {
	if p.unread[name] {
		return ""
	}
	s, _ := p.getenv(name)
	return chat.Secret(strings.TrimSpace(s))
}

// oneOf refuses two settings of which one can be used. Names are those of [program.named], and "" is one that is not set.
func oneOf(names ...string) error {
	names = slices.DeleteFunc(names, func(name string) bool { return name == "" })
	if len(names) > 1 {
		return usagef("%s and %s: one of them", strings.Join(names[:len(names)-1], ", "), names[len(names)-1])
	}
	return nil
}

// nameIf is the name of a setting that is set, else "".
func (p *program) nameIf(set bool, flag string) string {
	if set {
		return p.named(flag)
	}
	return ""
}

var (
	logFormats = []string{"text", "json"}
	logLevels  = []string{"debug", "info", "warn", "error"} // in capitals, too
)

// consoleFlags are the flags that every command has.
func (p *program) consoleFlags(cmd *cobra.Command) {
	defer inGroup(cmd, outputGroup)()
	f := cmd.Flags()
	f.String("log-format", "text", "`format` of log lines: text or json")
	f.String("log-level", "info", "minimum log `level`: debug, info, warn or error")
	f.BoolP("quiet", "q", false, "no progress; only warnings, errors and the report")
	choices(cmd, "log-format", logFormats...)
	offer(cmd, "log-level", logLevels...)
}

// logFormat is what the flags and the environment say that a line looks like, for errors in themselves: a command that
// takes the flags sets it anew.
func (p *program) logFormat() string {
	format, _ := p.getenv(envPrefix + "LOG_FORMAT")
	for i, arg := range p.args {
		switch value, joined := strings.CutPrefix(arg, "--log-format="); {
		case arg == "--":
			return format
		case joined:
			format = value
		case arg == "--log-format" && i+1 < len(p.args):
			format = p.args[i+1]
		}
	}
	return format
}

func (p *program) setConsole(cmd *cobra.Command) error {
	f := cmd.Flags()
	if f.Lookup("log-format") == nil {
		return nil // the root
	}
	format, _ := f.GetString("log-format")
	if slices.Contains(logFormats, format) {
		p.console.setLog(format)
	}
	level, _ := f.GetString("log-level")
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return valueError(p.named("log-level"), level, logLevels)
	}
	p.console.quiet, _ = f.GetBool("quiet")
	if p.console.quiet {
		l = max(l, slog.LevelWarn)
	}
	p.console.level.Set(l)
	return nil
}

// queueFlags say where the queue is.
type queueFlags struct {
	url, creds, context, dataDir, namespace string
	replicas                                int
}

func (q *queueFlags) add(cmd *cobra.Command) {
	defer inGroup(cmd, queueGroup)()
	f := cmd.Flags()
	f.StringVar(&q.url, "nats-url", "", "NATS server `URL`; without it an embedded server is used")
	f.StringVar(&q.creds, "nats-creds", "", "credentials `file` for that server")
	f.StringVar(&q.context, "nats-context", "", "`name` of a NATS context, instead of a URL")
	f.StringVar(&q.dataDir, "data-dir", "groupferry-data", "`directory` of the embedded server")
	f.StringVar(&q.namespace, "namespace", "groupferry", "prefix of all streams and buckets")
	f.IntVar(&q.replicas, "replicas", 1, "copies of each stream, in a NATS cluster")
}

// args are the flags that lead another command to the same queue. A URL with a login in it that came from the
// environment is left there.
func (q *queueFlags) args(p *program) string {
	s := ""
	for _, f := range []struct{ name, value, usual string }{
		{"nats-url", hideLogins(q.url), ""}, {"nats-creds", q.creds, ""}, {"nats-context", q.context, ""},
		{"data-dir", q.dataDir, "groupferry-data"}, {"namespace", q.namespace, "groupferry"},
	} {
		switch {
		case f.value == f.usual, f.name == "data-dir" && !q.embedded(), f.name == "nats-creds" && q.embedded():
		case f.name == "nats-url" && f.value != q.url && p.fromEnv["nats-url"] != "":
		default:
			s += " --" + f.name + " " + quoted(f.value)
		}
	}
	return s
}

// hideLogins masks what is secret in a list of NATS URLs; one without a login comes back as it is.
func hideLogins(list string) string {
	if !strings.Contains(list, "@") {
		return list
	}
	return redact.ServerList(list)
}

// queueOf reads the queue flags of a command that may not have all of them.
func queueOf(cmd *cobra.Command) queueFlags {
	get := func(name string) string {
		value, _ := cmd.Flags().GetString(name)
		return value
	}
	return queueFlags{url: get("nats-url"), creds: get("nats-creds"), context: get("nats-context"),
		dataDir: get("data-dir"), namespace: get("namespace")}
}

// check finds what is wrong with the flags before anything is done.
func (q *queueFlags) check(p *program) error {
	dataDir := ""
	if p.given["data-dir"] { // one from the environment is for when there is no server
		dataDir = "--data-dir"
	}
	if err := oneOf(p.nameIf(q.url != "", "nats-url"), p.nameIf(q.context != "", "nats-context"), dataDir); err != nil {
		return err
	}
	return q.config(p, false).Validate()
}

func (q *queueFlags) embedded() bool { return q.url == "" && q.context == "" }

// config says where the queue is. With joinOnly nothing is made: where no import was ever begun that is an error.
func (q *queueFlags) config(p *program, joinOnly bool) broker.Config {
	return broker.Config{
		URL: q.url, Creds: q.creds, Context: q.context, DataDir: q.dataDir, Namespace: q.namespace,
		Replicas: q.replicas, Name: "groupferry " + processName(), Log: p.console.log, JoinOnly: joinOnly, CommandFlags: q.args(p),
		OnBroken: func(e *broker.DiskError) { p.fail(e) },
	}
}

func (p *program) open(ctx context.Context, q queueFlags, joinOnly bool) (*app.Namespace, error) {
	if err := q.check(p); err != nil {
		return nil, err
	}
	s, err := app.Open(ctx, q.config(p, joinOnly))
	return s, noData(err)
}

// noData adds what to do where no import was ever begun.
func noData(err error) error {
	if errors.Is(err, broker.ErrNoData) {
		err = hint(err, "name the directory with --data-dir, or the server with --nats-url")
	}
	return err
}

// onQueue are the exit codes of a command that needs the queue alone.
var onQueue = exits{exitUnreachable: "NATS is out of reach", exitInterrupted: ""}.annotations()

// namespaceFunc does one thing to a namespace; where is how another command gets to it.
type namespaceFunc = func(ctx context.Context, s *app.Namespace, args []string, where string) error

// onNamespace makes a command that does one thing to a namespace that is there, whether workers run or not.
func (p *program) onNamespace(cmd *cobra.Command, do namespaceFunc) *cobra.Command {
	var qf queueFlags
	cmd.Annotations = onQueue
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := p.open(cmd.Context(), qf, true)
		if err != nil {
			return err
		}
		defer s.Close()
		return p.noImport(do(cmd.Context(), s, args, qf.args(p)), qf.args(p))
	}
	qf.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}

// onImport is onNamespace where the arguments are import IDs: whole ones take the place of prefixes.
func (p *program) onImport(cmd *cobra.Command, inFull bool, do namespaceFunc) *cobra.Command {
	return p.onNamespace(cmd, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		if err := p.findImport(ctx, s, args, inFull); err != nil {
			return err
		}
		return do(ctx, s, args, where)
	})
}

// targetFlags say which app of which API is meant.
type targetFlags struct {
	region, url string
	app         uint64
}

func (t *targetFlags) add(cmd *cobra.Command) {
	defer inGroup(cmd, apiGroup)()
	f := cmd.Flags()
	f.StringVar(&t.region, "region", "", "`region` of the app: "+orList(chat.Regions()))
	choices(cmd, "region", chat.Regions()...)
	f.StringVar(&t.url, "api-url", "", "base `URL` of the API, instead of a region")
	f.Uint64Var(&t.app, "sdk-app-id", 0, "SDKAppID of the app")
}

// baseURL is that of the API; "" if nothing says it.
func (t *targetFlags) baseURL(p *program) (string, error) {
	if err := oneOf(p.nameIf(t.url != "", "api-url"), p.nameIf(t.region != "", "region")); err != nil {
		return "", err
	}
	if t.region == "" {
		return t.url, nil
	}
	base, err := chat.RegionURL(t.region)
	if err != nil {
		return "", usagef("%s: %w", p.named("region"), err)
	}
	return base, nil
}

// apiFlags say which app to call, as whom, and how fast.
type apiFlags struct {
	targetFlags
	admin            string
	keyFile, sigFile string
	rate, appLimit   int
	chunk            int
	concurrency      int
	attempts         int
	timeout          time.Duration
	acceptReplace    bool

	simulator string // base URL of the simulator in this process; it goes before all others

	onDate func(time.Time) // see chat.Config; may be nil
}

func (a *apiFlags) add(cmd *cobra.Command) {
	a.addCalls(cmd)
	defer inGroup(cmd, apiGroup)()
	f := cmd.Flags()
	f.IntVar(&a.chunk, "chunk-size", chat.MaxItemsPerCall, "conversations in a call, at most 100")
	f.IntVar(&a.concurrency, "concurrency", 256, "jobs in flight at once")
	f.IntVar(&a.attempts, "max-attempts", 8, "attempts of a job before its failure is final")
	f.BoolVar(&a.acceptReplace, "accept-replace", false,
		"write where the API offers neither update_contact_group nor get_contact_group; "+
			"a group that exists may lose what it holds, and gets at most 100 conversations")
}

// addCalls adds the flags of a command that makes calls, but none for jobs.
func (a *apiFlags) addCalls(cmd *cobra.Command) {
	a.targetFlags.add(cmd)
	defer inGroup(cmd, apiGroup)()
	a.chunk, a.concurrency, a.attempts = chat.MaxItemsPerCall, 128, 1 // of no job; as many calls as are read at once
	f := cmd.Flags()
	f.StringVar(&a.admin, "admin", "administrator", "app admin `account` that makes the calls")
	f.StringVar(&a.keyFile, "secret-key-file", "", "`file` with the secret key (or "+envSecretKey+")")
	f.StringVar(&a.sigFile, "usersig-file", "", "`file` with a ready UserSig (or "+envUserSig+"), instead of a key")
	f.IntVar(&a.rate, "rate", governor.DefaultRate, "calls a second for each command of the app")
	f.IntVar(&a.appLimit, "app-limit", chat.MaxRate, "calls a second for each command that the vendor allows the app")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "of one call; at least 3s, which the API takes itself")
}

// An apiClient is the API's client, and the shortest round trip that it saw.
type apiClient struct {
	*chat.Client
	minRTT *governor.MinRTT
}

// client makes the API's client, and says in terms of flags what is missing, all at once.
func (p *program) client(a *apiFlags) (*apiClient, error) {
	switch {
	case a.rate < 1:
		return nil, usagef("%s %d: at least 1", p.named("rate"), a.rate)
	case a.appLimit < 1:
		return nil, usagef("%s %d: at least 1", p.named("app-limit"), a.appLimit)
	case a.chunk < 1 || a.chunk > chat.MaxItemsPerCall:
		return nil, usagef("%s %d: 1 to %d", p.named("chunk-size"), a.chunk, chat.MaxItemsPerCall)
	case a.concurrency < 1:
		return nil, usagef("%s %d: at least 1", p.named("concurrency"), a.concurrency)
	case a.attempts < 1:
		return nil, usagef("%s %d: at least 1", p.named("max-attempts"), a.attempts)
	case a.timeout < chat.ServerTimeout:
		return nil, usagef("%s %v: at least %v, for the API can take so long to give up a call that it may still carry out",
			p.named("timeout"), a.timeout, chat.ServerTimeout)
	}
	minRTT := &governor.MinRTT{}
	cfg := chat.Config{Admin: a.admin, Timeout: a.timeout, MaxConns: a.concurrency, OnTrip: minRTT.Note, OnDate: a.onDate}
	names := map[string]string{ // of the fields of cfg
		"BaseURL": p.named("api-url"), "SDKAppID": p.named("sdk-app-id"), "Admin": p.named("admin"), "Timeout": p.named("timeout"),
	}
	made := func(c *chat.Client, err error) (*apiClient, error) {
		if err != nil {
			field, why, _ := strings.Cut(err.Error(), ": ")
			return nil, usagef("%s: %s", cmp.Or(names[field], field), why)
		}
		return &apiClient{c, minRTT}, nil
	}
	if a.simulator != "" {
		cfg.BaseURL, cfg.SDKAppID, cfg.SecretKey = a.simulator, chatsim.DemoSDKAppID, chatsim.DemoSecretKey
		return made(chat.New(cfg))
	}
	key, sig := p.secretEnv(envSecretKey), p.secretEnv(envUserSig)
	keyEnv, sigEnv := "", ""
	if key != "" {
		keyEnv = envSecretKey
	}
	if sig != "" {
		sigEnv = envUserSig
	}
	keyFile, sigFile := p.nameIf(a.keyFile != "", "secret-key-file"), p.nameIf(a.sigFile != "", "usersig-file")
	var err error
	if cfg.BaseURL, err = a.baseURL(p); err != nil {
		return nil, err
	}
	if err := oneOf(keyFile, keyEnv, sigFile, sigEnv); err != nil {
		return nil, err
	}
	if a.region != "" && a.rate > a.appLimit {
		return nil, usagef("%s %d: an app has %d calls a second for each command; if the vendor raised the limit of yours, say so with --app-limit %d",
			p.named("rate"), a.rate, a.appLimit, a.rate)
	}
	var missing []string
	if a.url == "" && a.region == "" {
		missing = append(missing, "--region or --api-url is required (or --simulate with 'run')")
	}
	if a.app == 0 {
		missing = append(missing, "--sdk-app-id is required")
	}
	if keyFile+keyEnv+sigFile+sigEnv == "" {
		missing = append(missing, fmt.Sprintf("no credentials: give --secret-key-file, %s, --usersig-file or %s", envSecretKey, envUserSig))
	}
	if len(missing) > 0 {
		return nil, usagef("%s", strings.Join(missing, "; "))
	}
	cfg.SDKAppID, cfg.SecretKey, cfg.UserSig = a.app, key, sig
	names["SecretKey"], names["UserSig"] = cmp.Or(keyFile, keyEnv), cmp.Or(sigFile, sigEnv)
	if a.keyFile != "" {
		if cfg.SecretKey, err = readSecret(a.keyFile, keyFile); err != nil {
			return nil, err
		}
	}
	if a.sigFile != "" {
		if cfg.UserSig, err = readSecret(a.sigFile, sigFile); err != nil {
			return nil, err
		}
	}
	if a.rate > a.appLimit { // nobody knows whose API that is
		p.console.event("the rate is more than an app of the vendor has", "calls_per_second", a.rate).
			warn("%s %d: an app of the vendor has %d calls a second for each command; --app-limit says that it has more",
				p.named("rate"), a.rate, a.appLimit)
	}
	if chat.InsecureURL(cfg.BaseURL) {
		p.console.event("the way to the API is not encrypted: whoever listens can read the UserSig", "url", cfg.BaseURL).
			warn("%s is not encrypted: whoever listens can read the UserSig", p.named("api-url"))
	}
	return made(chat.New(cfg))
}

// limit is the most calls a second that the app has, whatever the rate of the namespace; 0 when nobody knows.
func (a *apiFlags) limit() int {
	if a.region == "" {
		return 0
	}
	return a.appLimit
}

// readSecret reads a secret from the file that a setting names.
func readSecret(file, setting string) (chat.Secret, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", usagef("%s: %w", setting, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", usagef("%s: %s is empty", setting, file)
	}
	return chat.Secret(s), nil
}

// inputFlags say how inputs are read and what becomes of bad rows.
type inputFlags struct {
	format, delimiter, importID string
	columns                     map[string]string
	maxRejects, rejects         string
	allowEmpty                  bool
	preset, owner, mapIDs       string
	spoolDir                    string
}

func (i *inputFlags) add(cmd *cobra.Command) {
	i.addReading(cmd, "auto", "csv", "jsonl")
	defer inGroup(cmd, inputGroup)()
	f := cmd.Flags()
	f.StringVar(&i.importID, "import-id", "", "`name` of the import (default: made from the content)")
	f.StringVar(&i.maxRejects, "max-rejects", "", "enqueue nothing if more rows than `N or N%` are rejected")
	f.StringVar(&i.rejects, "rejects", "", "`file` for rejected rows, - for standard output (default IMPORT-rejects.csv)")
	f.BoolVar(&i.allowEmpty, "allow-empty", false, "take an input of which no row is accepted")
}

// addReading adds the flags that say how inputs are read.
func (i *inputFlags) addReading(cmd *cobra.Command, formats ...string) {
	defer inGroup(cmd, inputGroup)()
	f := cmd.Flags()
	f.StringVar(&i.format, "format", "auto", "`format` of the input: "+orList(formats))
	choices(cmd, "format", formats...)
	f.StringVar(&i.delimiter, "delimiter", ",", "`character` between CSV fields; \\t for tab")
	f.StringToStringVar(&i.columns, "columns", nil, "other column `names`, such as from_account=owner,group_name=label")
	f.StringVar(&i.preset, "preset", "", "`system` that the input comes from: "+orList(importer.Presets()))
	choices(cmd, "preset", importer.Presets()...)
	f.StringVar(&i.owner, "owner", "", "user `id` for input that does not say from whom its rows are")
	f.StringVar(&i.mapIDs, "map-ids", "", "CSV `file` with the columns old,new; an id that is not in it is rejected")
	f.StringVar(&i.spoolDir, "spool-dir", "", "`directory` in which large input is sorted (default: that of temporary files)")
}

func (i *inputFlags) config(p *program, files []string, chunk int) (app.InputConfig, error) {
	cfg := app.InputConfig{
		Files: files, Rejects: i.rejects, Stdout: p.data(), AllowEmpty: i.allowEmpty, OnRead: p.showPlan,
		Importer: importer.Config{
			Format: importer.Format(i.format), Columns: i.columns, ImportID: i.importID, ChunkSize: chunk, Stdin: p.stdin,
			Preset: i.preset, Owner: i.owner, MapIDs: i.mapIDs, SpoolDir: i.spoolDir, Progress: p.showReading(),
		},
	}
	switch d := i.delimiter; {
	case d == `\t`:
		cfg.Importer.Delimiter = '\t'
	case utf8.RuneCountInString(d) == 1:
		cfg.Importer.Delimiter, _ = utf8.DecodeRuneInString(d)
	default:
		return cfg, usagef("%s %q: one character, or \\t", p.named("delimiter"), d)
	}
	if i.rejects == app.Stdout {
		p.stdout = p.stderr // what else goes there would be no CSV
	}
	var err error
	cfg.MaxRejects, err = p.budget("max-rejects", i.maxRejects)
	return cfg, err
}

// budget parses a number of rows or a share of them.
func (p *program) budget(flag, value string) (b app.Budget, err error) {
	if value == "" {
		return b, nil
	}
	number, percent := strings.CutSuffix(value, "%")
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) || percent && n > 100 || !percent && n != float64(int64(n)) {
		return b, usagef("%s %q: a number of rows, or a share such as 5%%", p.named(flag), value)
	}
	if percent {
		return app.Budget{Limited: true, Percent: n}, nil
	}
	return app.Budget{Limited: true, Rows: int64(n)}, nil
}

// keepFlag is how long an import is kept after its end.
type keepFlag time.Duration

func (k *keepFlag) add(cmd *cobra.Command) {
	cmd.Flags().Var(k, "keep", "delete imports that ended longer ago than this `time`, such as 30d (default: never)")
}

// Set takes whole days as 30d, and what time.ParseDuration does.
func (k *keepFlag) Set(s string) error {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: a number of days such as 30d, or a time such as 12h", s)
	}
	*k = keepFlag(d)
	return nil
}

func (k *keepFlag) String() string {
	if *k == 0 {
		return ""
	}
	return time.Duration(*k).String()
}

func (k *keepFlag) Type() string { return "time" }

// serveFlags say where the page, metrics and status are served, and who may use the buttons of the page.
type serveFlags struct{ address, tokenFile string }

func (s *serveFlags) add(cmd *cobra.Command, address, off string) {
	defer inGroup(cmd, outputGroup)()
	f := cmd.Flags()
	f.StringVar(&s.address, "listen", address, "`address` of the page, metrics and status, for whoever reaches it; "+off)
	f.StringVar(&s.tokenFile, "page-token-file", "", "`file` with a token of at least 16 characters; who gives it may pause, "+
		"resume, retry and set the rate on the page (default: nobody)")
}

// listen serves the page, metrics and status until stop is called; "" and "off" mean nowhere, and no monitor. A
// command may read its input before it does anything else.
func (p *program) listen(s *serveFlags, readsInput bool) (m *app.Monitor, stop func(), err error) {
	if s.address == "" || s.address == "off" {
		if p.given["page-token-file"] {
			return nil, nil, hint(usagef("--page-token-file: no page is served"), "add --listen 127.0.0.1:9477")
		}
		return nil, func() {}, nil
	}
	var token string
	if s.tokenFile != "" {
		if token, err = p.readToken(s.tokenFile); err != nil {
			return nil, nil, err
		}
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return nil, nil, hint(usagef("%s: %w", p.named("listen"), err), "choose another address, or --listen off")
	}
	m = app.NewMonitor(build())
	m.ReadsInput, m.Token = readsInput, token
	return m, m.Serve(l, p.console.log), nil
}

// readToken reads the token of the page.
func (p *program) readToken(file string) (string, error) {
	setting := p.named("page-token-file")
	secret, err := readSecret(file, setting)
	if err != nil {
		return "", err
	}
	token, fault := secret.Reveal(), ""
	switch n := utf8.RuneCountInString(token); {
	case n < page.MinToken:
		fault = fmt.Sprintf("has %d characters, and needs at least %d", n, page.MinToken)
	case strings.ContainsAny(token, "\r\n"):
		fault = "has more than one line"
	case strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r > '~' }): // a browser could not send it
		fault = "has control characters, or characters beyond ASCII"
	}
	if fault != "" {
		return "", hint(usagef("%s: %s %s", setting, file, fault), "openssl rand -hex 16 > %s", quoted(file))
	}
	if info, err := os.Stat(file); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		p.console.event("everybody on this host can read the token of the page", "file", file).
			warn("%s: everybody on this host can read %s; chmod 600 helps", setting, file)
	}
	return token, nil
}

// wallClock replaces the machine's wall clock in tests that set it; nil otherwise.
var wallClock func() time.Time

// identity is the app that is called.
func (a *apiFlags) identity() queue.App {
	if a.simulator != "" {
		return queue.App{SDKAppID: chatsim.DemoSDKAppID, Simulated: true}
	}
	return queue.App{SDKAppID: a.app}
}

// processConfig is what run and work have in common: how to call the API, and which import is waited for, if any.
func (p *program) processConfig(s *app.Namespace, api *apiClient, a *apiFlags, importID string) app.ProcessConfig {
	cfg := app.ProcessConfig{
		Engine: p.engineConfig(s, api, a),
		Import: importID,
		OnAbandoned: func(i app.ImportProgress) {
			next := "import its files again"
			if i.Import.State == queue.Retrying {
				next = s.Conn.Command("retry", i.Import.ID)
			}
			p.console.event("nothing comes any more for an import that is not on the queue as a whole", "import", i.Import.ID,
				"state", i.Import.State, "to_continue", next).
				warn("import %s is %s, and nothing comes any more; to continue: %s", i.Import.ID, i.Import.State, next)
		},
	}
	return cfg
}

// engineConfig says how to call the API.
func (p *program) engineConfig(s *app.Namespace, api *apiClient, a *apiFlags) app.EngineConfig {
	cfg := app.EngineConfig{
		Namespace: s, API: api.Client, App: a.identity(), RoundTrip: api.minRTT,
		Name: uniqueName(), Host: processName(), Rate: a.rate, Limit: a.limit(), Timeout: a.timeout,
		Worker: worker.Config{
			Concurrency: a.concurrency, ChunkSize: a.chunk, MaxAttempts: a.attempts, AcceptReplace: a.acceptReplace,
			Name: processName(), Log: p.console.log,
		},
		Log: p.console.log,
	}
	cfg.Clock.Wall = wallClock
	return cfg
}

// uniqueName is processName with a part that no earlier process had.
func uniqueName() string {
	b := make([]byte, 8)
	rand.Read(b)
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || unicode.IsSpace(r) {
			return '_' // of a subject
		}
		return r
	}, processName()) + "-" + hex.EncodeToString(b)
}

// processName names this process in results, logs and the server's reports.
func processName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}
