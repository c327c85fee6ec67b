package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"groupferry/internal/app"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// completionTime is how long the queue is asked for a person who presses Tab; tests, on a busy machine, take longer.
var completionTime = 700 * time.Millisecond

// tidyTime is how long to clean up after that: together they are the second that the help promises.
const tidyTime = 300 * time.Millisecond

var shells = []string{"bash", "zsh", "fish", "powershell"}

func (p *program) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script with which a shell completes groupferry",
		Long: `completion prints a script with which a shell completes commands, flags and
their values: regions, presets, formats, files; and import IDs and names of
syncs, for which it asks the queue that the flags and the environment name. That
takes a second at most, and changes nothing. For this session:

  bash         source <(groupferry completion bash)
  zsh          source <(groupferry completion zsh)
  fish         groupferry completion fish | source
  powershell   groupferry completion powershell | Out-String | Invoke-Expression

For all, put that line into the file that the shell reads when it starts. bash
needs its package bash-completion; zsh needs 'autoload -U compinit; compinit'
before that line. Packages put the script where the shell looks for it:

  bash   /usr/share/bash-completion/completions/groupferry
  zsh    /usr/share/zsh/site-functions/_groupferry
  fish   /usr/share/fish/vendor_completions.d/groupferry.fish`,
		Annotations: exits{}.annotations(),
		ValidArgs:   shells,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usagef("one SHELL is required: %s", orList(shells))
			case !slices.Contains(shells, args[0]):
				return valueError("shell", args[0], shells)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(p.stdout, true)
			case "zsh":
				return root.GenZshCompletion(p.stdout)
			case "fish":
				return root.GenFishCompletion(p.stdout, true)
			default:
				return root.GenPowerShellCompletionWithDesc(p.stdout)
			}
		},
	}
}

// complete says what a shell completes after a command and after its flags: what the help calls the value tells a file, a
// directory and an import from other things.
func (p *program) complete(cmd *cobra.Command) {
	switch {
	case strings.Contains(cmd.Use, "IMPORT"):
		cmd.ValidArgsFunction = p.completeImportArg
	case !strings.Contains(cmd.Use, "FILE") && cmd.ValidArgs == nil:
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		kind, usage := pflag.UnquoteUsage(f)
		f.Usage = usage // which a shell shows as it is
		complete := cobra.NoFileCompletions
		switch values := f.Annotations[valuesAnnotation]; {
		case values != nil:
			complete = cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)
		case kind == "file":
			return // as shells do it by themselves
		case kind == "directory":
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
		case f.Name == "import":
			complete = p.completeImport
		case f.Name == "sync":
			complete = p.completeSync
		}
		if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
			panic(err) // there are two flags of that name
		}
	})
}

// completeImport completes the ID of an import.
func (p *program) completeImport(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var found []cobra.Completion
	imports, _ := p.records(cmd, completionTime)
	for _, i := range imports {
		if strings.HasPrefix(i.ID, prefix) && job.ValidImportID(i.ID) {
			about := fmt.Sprintf("%s, %s ago: %s", i.State, age(time.Since(i.Created)), fileNames(i.Files))
			found = append(found, cobra.CompletionWithDesc(i.ID, about))
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// completeImportArg completes the argument of a command that takes one import.
func (p *program) completeImportArg(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.completeImport(cmd, args, prefix)
}

// completeSync completes the name of a sync.
func (p *program) completeSync(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var found []cobra.Completion
	_, syncs := p.records(cmd, completionTime)
	for _, s := range syncs {
		if strings.HasPrefix(s.Name, prefix) && queue.ValidSyncName(s.Name) {
			found = append(found, cobra.CompletionWithDesc(s.Name, fmt.Sprintf("%s, in night %d", s.Target, s.Night)))
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// records are the imports and syncs of the queue that a command line names: none where that cannot be found out, whatever
// the reason, for a person who presses Tab wants no error.
func (p *program) records(cmd *cobra.Command, within time.Duration) ([]queue.Import, []queue.Sync) {
	if err := p.fromEnvironment(cmd); err != nil {
		return nil, nil
	}
	q := queueOf(cmd)
	if q.check(p) != nil {
		return nil, nil
	}
	cfg := q.config(p, true)
	cfg.Log, cfg.OnBroken = nil, nil
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	type records struct {
		imports []queue.Import
		syncs   []queue.Sync
	}
	read := make(chan records, 1)
	go func() {
		imports, syncs, err := app.Records(ctx, cfg)
		if err != nil {
			read <- records{}
			return
		}
		read <- records{imports, syncs}
	}()
	select {
	case r := <-read:
		return r.imports, r.syncs
	case <-ctx.Done():
		select {
		case <-read:
		case <-time.After(tidyTime):
		}
		return nil, nil
	}
}
