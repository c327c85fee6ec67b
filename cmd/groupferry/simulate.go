package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

func (p *program) simulateCommand() *cobra.Command {
	var cfg chatsim.Config
	var address, existing, names, keyFile, admin string
	var faults []string
	var failIDs map[string]string
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Serve the API on a local port, with limits, faults and a ledger",
		Long: `simulate serves create_contact_group, update_contact_group, get_contact_group
and del_contact_group as the API would: it checks the UserSig and every limit,
throttles more than --rate calls of a command in any second, and keeps the
groups in memory. It prints how to point groupferry at it, and when it is
stopped, its ledger.

A --fault is [COMMAND/]KIND[:SHARE][@AFTER][+FOR]: KIND is an API code, http-502
(or another status), reset, hang, lost (applied, but the response is lost), late
(the response is lost, and the call is applied 2.5 s later), cut, garbage, or
item-51007 (a code for single conversations). 50004:10% strikes one call in ten,
51013@50 every call from the 51st on, update_contact_group/http-404+1 the first
update.

  GET  /ledger   what arrived: calls, most in any second, bad requests
  GET  /state    all groups
  POST /control  change faults, limits and latency while it runs (JSON)
  POST /reset    forget the groups and the ledger`,
		Annotations: exits{}.annotations(),
		Example: `  groupferry simulate
  groupferry simulate --latency 50ms --fault 50004:10% --fault lost:5%`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Existing, cfg.Names = chatsim.Existing(existing), chatsim.Names(names)
			if admin != "" {
				cfg.Admins = []string{admin}
			}
			for _, s := range faults {
				f, err := chatsim.ParseFault(s)
				if err != nil {
					return usagef("%s %s: %w", p.named("fault"), s, err)
				}
				cfg.Faults = append(cfg.Faults, f)
			}
			if len(failIDs) > 0 {
				cfg.FailIDs = map[string]int{}
			}
			for id, code := range failIDs {
				n, err := strconv.Atoi(code)
				if err != nil {
					return usagef("%s %s=%s: the code is a number", p.named("fail-id"), id, code)
				}
				cfg.FailIDs[id] = n
			}
			var err error
			if keyFile != "" {
				if cfg.SecretKey, err = readSecret(keyFile, p.named("secret-key-file")); err != nil {
					return err
				}
			}
			if err := cfg.Validate(); err != nil {
				return &usageError{err}
			}
			sim := chatsim.New(cfg)
			url, err := sim.Start(address)
			if err != nil {
				return usagef("%s: %w", p.named("listen"), err)
			}
			defer sim.Close()
			fmt.Fprint(p.stdout, sim.Hint(url))
			<-cmd.Context().Done()
			return writeLedger(p, sim.Ledger())
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "listen", "127.0.0.1:9478", "`address` to serve at (or GROUPFERRY_SIMULATE_LISTEN)")
	f.Uint64Var(&cfg.SDKAppID, "sdk-app-id", chatsim.DemoSDKAppID, "SDKAppID of the app")
	f.StringVar(&admin, "admin", chat.DefaultAdmin, "app admin `account`")
	f.StringVar(&keyFile, "secret-key-file", "", "`file` with the secret key of the app (default: a published demo key)")
	f.IntVar(&cfg.Rate, "rate", chat.MaxRate, "calls of a command in any second; -1 for no limit (or GROUPFERRY_SIMULATE_RATE)")
	f.StringVar(&existing, "existing", string(chatsim.Append), "`what` create does to a group that is there: append, replace or refuse")
	f.StringVar(&names, "names", string(chatsim.Exact), "`how` names that differ in case or Unicode form count: exact, as two groups, or fold, as one")
	f.BoolVar(&cfg.NoUpdate, "no-update", false, "do not offer update_contact_group (404)")
	f.BoolVar(&cfg.NoGet, "no-get", false, "do not offer get_contact_group (404)")
	f.BoolVar(&cfg.NoDelete, "no-delete", false, "do not offer del_contact_group (404)")
	f.StringVar(&cfg.Edition, "edition", chatsim.Ultimate, "`edition` of the app: ultimate, or standard (51013)")
	choices(cmd, "existing", string(chatsim.Append), string(chatsim.Replace), string(chatsim.Refuse))
	choices(cmd, "names", string(chatsim.Exact), string(chatsim.Fold))
	choices(cmd, "edition", chatsim.Ultimate, chatsim.Standard)
	f.DurationVar(&cfg.Latency, "latency", 0, "of a call")
	f.DurationVar(&cfg.Jitter, "jitter", 0, "of the latency, up to this much more or less")
	f.StringArrayVar(&faults, "fault", nil, "inject a `fault`; can be given more than once")
	f.StringToStringVar(&failIDs, "fail-id", nil, "`ID=CODE` of a user or a conversation that fails")
	f.Uint64Var(&cfg.Seed, "seed", 0, "of faults and jitter")
	for _, flag := range []string{"listen", "rate"} { // GROUPFERRY_LISTEN and GROUPFERRY_RATE are those of workers
		f.SetAnnotation(flag, envAnnotation, []string{envPrefix + "SIMULATE_" + strings.ToUpper(flag)})
	}
	p.consoleFlags(cmd)
	return cmd
}

func writeLedger(p *program, l chatsim.Ledger) error {
	var b strings.Builder
	for _, command := range chat.Commands() {
		if c := l.Commands[command]; c.Calls > 0 {
			fmt.Fprintf(&b, "%-21s %s calls · ok %s · throttled %s · faulted %s · failed %s · most in a second %d, in 100 ms %d\n",
				command, count(c.Calls), count(c.OK), count(c.Throttled), count(c.Faulted), count(c.Failed), c.MaxPerSecond, c.MaxPer100ms)
		}
	}
	fmt.Fprintf(&b, "%s conversations in %s groups of %s users · bad requests %s · most calls of one user at once %d\n",
		count(l.Conversations), count(l.Groups), count(l.Users), count(l.BadRequests), l.MostAtOnce)
	_, err := fmt.Fprint(p.stdout, b.String())
	return err
}
