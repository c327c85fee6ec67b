package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"groupferry/internal/broker"
	"groupferry/internal/chatsim"
)

// A stage is what a script has beside its files.
type stage struct {
	sim  *chatsim.Sim
	more []string // secrets beside testKey
}

type stageKey struct{}

// The scripts call the program as processes. Beside testscript's own commands they have:
//
//	exit CODE PROGRAM ARG...   call a program, which has to end with this code
//	until PATTERN CMD ARG...   call a program until its standard output matches
//	get URL PATTERN            get a page until its status line and body match
//	set NAME                   keep the standard output in the environment
//	port NAME                  find a free port
//	sim [JSON]                 start a simulator with this Config and point the environment at it
//	control JSON               change its Config
//	ledger FIELD VALUE         look into its ledger; VALUE can be <=N
//	state FILE...              its groups have to be what these inputs say
//	nats                       start a NATS server and set NATS_URL
//	host NAME                  keep the host and the port of NATS_URL in the environment
//	token NAME                 keep the token of the NATS server in the environment
//	ugly FILE                  give a file a name that a terminal would obey, and set UGLY
//
// $KEY is a file with the secret key, $SAMPLES the directory with the samples. At the end nothing that the program
// printed or left behind may hold a secret.
func TestScripts(t *testing.T) {
	samples, err := filepath.Abs(filepath.Join(root, "samples"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			s := &stage{}
			e.Values[stageKey{}] = s
			secrets := filepath.Join(e.WorkDir, secretsDir)
			if err := os.Mkdir(secrets, 0o700); err != nil {
				return err
			}
			key := filepath.Join(secrets, "key")
			if err := os.WriteFile(key, []byte(testKey+"\n"), 0o600); err != nil {
				return err
			}
			transcript := filepath.Join(e.WorkDir, ".transcript")
			e.Setenv(transcriptEnv, transcript)
			e.Setenv("KEY", key)
			e.Setenv("SAMPLES", samples)
			e.Defer(func() {
				text, err := os.ReadFile(transcript)
				if err != nil {
					e.T().Fatal(err)
				}
				if leak := leakIn(string(text), s.more...); leak != "" {
					e.T().Fatal("the program printed a secret: " + leak)
				}
				if leak := leakBelow(e.WorkDir); leak != "" {
					e.T().Fatal("a secret was left behind: " + leak)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":    cmdExit,
			"until":   cmdUntil,
			"get":     cmdGet,
			"set":     cmdSet,
			"port":    cmdPort,
			"sim":     cmdSim,
			"control": cmdControl,
			"ledger":  cmdLedger,
			"state":   cmdState,
			"nats":    cmdNATS,
			"host":    cmdHost,
			"token":   cmdToken,
			"ugly":    cmdUgly,
		},
	})
}

// usage ends the script unless it gave least to most arguments to a command that cannot be negated.
func usage(ts *testscript.TestScript, neg bool, args []string, least, most int) {
	if neg || len(args) < least || len(args) > most {
		ts.Fatalf("usage: %d to %d arguments, and no !", least, most)
	}
}

func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, 99)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("got exit code %d, want %d", got, want)
	}
}

// inTime asks again until so is true or patience is at its end.
func inTime(ts *testscript.TestScript, so func() bool) {
	for end := time.Now().Add(patience); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("waited %v in vain", patience)
		}
	}
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, 99)
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	inTime(ts, func() bool { return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout")) })
}

func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, 2)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	last := ""
	defer func() { ts.Logf("%s", last) }()
	inTime(ts, func() bool {
		response, err := http.Get(args[0])
		if err != nil {
			last = err.Error()
			return false
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		last = response.Status + "\n" + string(body)
		if leak := leakIn(last); leak != "" {
			ts.Fatalf("%s shows a secret: %s", args[0], leak)
		}
		return err == nil && pattern.MatchString(last)
	})
}

func cmdSet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], port)
}

func onStage(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

func cmdSim(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 0, 1)
	cfg := chatsim.Config{SecretKey: testKey, Rate: -1}
	if len(args) == 1 {
		ts.Check(json.Unmarshal([]byte(args[0]), &cfg))
	}
	s := onStage(ts)
	s.sim = chatsim.New(cfg)
	base, err := s.sim.Start("127.0.0.1:0")
	ts.Check(err)
	ts.Defer(s.sim.Close)
	ts.Setenv("GROUPFERRY_API_URL", base)
	ts.Setenv("GROUPFERRY_SDK_APP_ID", strconv.Itoa(chatsim.DemoSDKAppID))
	ts.Setenv("GROUPFERRY_SECRET_KEY", testKey)
	ts.Setenv("GROUPFERRY_APP_LIMIT", "100000") // so that a --rate needs no warning
}

func cmdControl(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	response, err := http.Post(ts.Getenv("GROUPFERRY_API_URL")+"/control", "application/json", strings.NewReader(args[0]))
	ts.Check(err)
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		ts.Fatalf("control: got %s", response.Status)
	}
}

func cmdLedger(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, 2)
	b, err := json.Marshal(onStage(ts).sim.Ledger())
	ts.Check(err)
	var at any
	ts.Check(json.Unmarshal(b, &at))
	for field := range strings.SplitSeq(args[0], ".") {
		object, _ := at.(map[string]any)
		there := false
		if at, there = object[field]; !there {
			ts.Fatalf("the ledger has no %s: %s", args[0], b)
		}
	}
	got, ok := at.(float64)
	number, atMost := strings.CutPrefix(args[1], "<=")
	want, err := strconv.ParseFloat(number, 64)
	ts.Check(err)
	if !ok || got > want || !atMost && got != want {
		ts.Fatalf("%s: got %v, want %s", args[0], at, args[1])
	}
}

func cmdState(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 0, 99)
	var all []row
	for _, file := range args {
		rows, err := readRows(ts.MkAbs(file))
		ts.Check(err)
		all = append(all, rows...)
	}
	if d := differences(onStage(ts).sim.State(), stateOf(all)); d != "" {
		ts.Fatalf("state of the app:\n%s", d)
	}
}

// cmdNATS has a server listen that is, for a client with a URL, one like any other: it asks for a token.
func cmdNATS(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 0, 0)
	dir := ts.MkAbs("nats")
	conn, err := broker.Open(context.Background(), broker.Config{DataDir: dir, Namespace: "unused"})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	b, err := os.ReadFile(filepath.Join(dir, "server.json"))
	ts.Check(err)
	var server struct{ URL, Token string }
	ts.Check(json.Unmarshal(b, &server))
	u, err := url.Parse(server.URL)
	ts.Check(err)
	s := onStage(ts)
	s.more = append(s.more, server.Token)
	ts.Setenv("NATS_URL", fmt.Sprintf("nats://%s@%s", server.Token, u.Host))
}

func cmdHost(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	_, host, _ := strings.Cut(ts.Getenv("NATS_URL"), "@")
	ts.Setenv(args[0], host)
}

func cmdToken(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	ts.Setenv(args[0], onStage(ts).more[0])
}

func cmdUgly(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, 1)
	name := "red\x1b[31m\u202e\nx.csv"
	ts.Check(os.Rename(ts.MkAbs(args[0]), ts.MkAbs(name)))
	ts.Setenv("UGLY", name)
}
