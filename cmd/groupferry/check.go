package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/governor"
)

func (p *program) checkCommand() *cobra.Command {
	var in inputFlags
	var out outputFlag
	rate, chunk, show := governor.DefaultRate, chat.MaxItemsPerCall, 0
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Read and check the input, and do nothing else",
		Long: `check reads and checks the input as import and run do, and says what they would
make of it: rows, rejects, groups, calls, and the time that the calls take. It
needs no queue and no API, and sends nothing. With --rejects it writes the
rejected rows to a file. With --show it prints the first calls of the first
groups as they would be sent, which is how a --preset or --columns can be tried.

A FILE is CSV or JSONL, also compressed with gzip or zstd; - is standard input.`,
		Example: `  groupferry check samples/messy.csv
  groupferry check --preset sdk --show 5 samples/sdk.csv
  groupferry check --output json export/*.jsonl.gz`,
		Args: files,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if chunk < 1 || chunk > chat.MaxItemsPerCall {
				return usagef("--chunk-size %d: 1 to %d", chunk, chat.MaxItemsPerCall)
			}
			if rate < 1 {
				return usagef("--rate %d: at least 1", rate)
			}
			plan, err := p.read(args, &in, chunk)
			if err != nil {
				return err
			}
			defer plan.Close()
			rejects := ""
			if in.rejects != "" {
				if rejects, err = p.keepRejects(plan, &in); err != nil {
					return err
				}
			}
			if err := writeCheck(p.stdout, plan, args, rate, show, chunk, out.format); err != nil {
				return err
			}
			if err := p.withinBudget(plan, &in, rejects); err != nil {
				return err
			}
			if plan.Summary.Rejected > 0 {
				return errIncomplete
			}
			return nil
		},
	}
	in.add(cmd)
	out.add(cmd, "text", "json")
	cmd.Flags().IntVar(&rate, "rate", rate, "calls a second, for the time needed")
	cmd.Flags().IntVar(&chunk, "chunk-size", chunk, "conversations in a call, at most 100")
	cmd.Flags().IntVar(&show, "show", 0, "print the first call of the first `n` groups")
	p.consoleFlags(cmd)
	return cmd
}

// firstCalls are the requests with which the first groups would be made.
func firstCalls(plan *importer.Plan, show, chunk int) ([]json.RawMessage, error) {
	calls := []json.RawMessage{}
	if show <= 0 {
		return calls, nil
	}
	for j, err := range plan.Jobs() {
		if err != nil {
			return nil, err
		}
		call := chat.CreateRequest{FromAccount: j.FromAccount, GroupName: j.GroupName}
		for _, c := range j.Conversations[:min(chunk, len(j.Conversations))] {
			call.Items = append(call.Items, chat.Item{Type: c.Type, ID: c.ID})
		}
		if calls = append(calls, call.Body()); len(calls) == show {
			break
		}
	}
	return calls, nil
}

// writeCheck writes what a plan comes to.
func writeCheck(w io.Writer, plan *importer.Plan, inputs []string, rate, show, chunk int, format string) error {
	s := plan.Summary
	groups, err := groupRejects(plan.Rejects())
	if err != nil {
		return err
	}
	calls, err := firstCalls(plan, show, chunk)
	if err != nil {
		return err
	}
	seconds := math.Ceil(float64(s.Calls) / float64(rate))
	if format == "json" {
		type reject struct {
			Code   string `json:"code"`
			Reason string `json:"reason"`
			Count  int64  `json:"count"`
			First  string `json:"first_file"`
			AtLine int64  `json:"first_line"`
		}
		grouped := []reject{}
		for _, g := range groups {
			grouped = append(grouped, reject{g.first.Code, g.first.Reason, g.count, g.first.File, g.first.Line})
		}
		type warning struct {
			Text string `json:"text"`
			File string `json:"file"`
			Line int64  `json:"line"`
		}
		warned := []warning{}
		for _, at := range plan.Warnings {
			warned = append(warned, warning{at.Text, at.File, at.Line})
		}
		return writeJSON(w, map[string]any{
			"import": plan.ImportID, "files": s.Files, "bytes": s.Bytes, "rows": s.Rows, "accepted": s.Accepted,
			"duplicates": s.Duplicates, "rejected": s.Rejected, "users": s.Users, "groups": s.Jobs, "jobs": s.Jobs,
			"conversations": s.Conversations, "calls": s.Calls, "rate": rate, "seconds": seconds,
			"rejects": grouped, "warnings": warned, "warnings_total": s.Warnings, "first_calls": calls,
		})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "import %s (%s)\n", plan.ImportID, strings.Join(fileNames(inputs), ", "))
	fmt.Fprintf(&b, "  rows           %-9s accepted %s · duplicates %s · rejected %s\n", count(s.Rows), count(s.Accepted), count(s.Duplicates), count(s.Rejected))
	fmt.Fprintf(&b, "  groups         %-9s of %s users\n", count(s.Jobs), count(s.Users))
	fmt.Fprintf(&b, "  conversations  %s\n", count(s.Conversations))
	fmt.Fprintf(&b, "  calls          %-9s at %d a second: %s\n", count(s.Calls), rate, span(time.Duration(seconds)*time.Second))
	for _, g := range groups {
		fmt.Fprintf(&b, "  rejects        %-9s %s: %s; first at %s:%d\n", count(g.count), g.first.Code, g.first.Reason, g.first.File, g.first.Line)
	}
	for _, call := range calls {
		fmt.Fprintf(&b, "%s\n", call)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

type rejectGroup struct {
	first importer.Reject
	count int64
}

// maxRejectGroups bounds what groupRejects holds: some reasons have a line number in them.
const maxRejectGroups = 1000

// groupRejects gathers rejects with the same code and reason, the most frequent first. Where there are very many
// reasons, the last ones to appear go by their codes.
func groupRejects(rejects iter.Seq2[importer.Reject, error]) ([]rejectGroup, error) {
	type key struct{ code, reason string }
	groups := map[key]*rejectGroup{}
	for r, err := range rejects {
		if err != nil {
			return nil, err
		}
		k := key{r.Code, r.Reason}
		if groups[k] == nil && len(groups) >= maxRejectGroups {
			r.Reason = "for other reasons"
			k.reason = r.Reason
		}
		if groups[k] == nil {
			groups[k] = &rejectGroup{first: r}
		}
		groups[k].count++
	}
	all := make([]rejectGroup, 0, len(groups))
	for g := range maps.Values(groups) {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b rejectGroup) int {
		if a.count != b.count {
			return int(b.count - a.count)
		}
		if c := strings.Compare(a.first.File, b.first.File); c != 0 {
			return c
		}
		if a.first.Line != b.first.Line {
			return int(a.first.Line - b.first.Line)
		}
		return strings.Compare(a.first.Reason, b.first.Reason)
	})
	return all, nil
}
