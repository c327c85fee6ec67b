package main

import (
	"time"

	"github.com/spf13/cobra"
)

func (p *program) resumeCommand() *cobra.Command {
	var qf queueFlags
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Let the workers go on after a halt",
		Long: `resume ends a halt, once what made it is mended: workers that wait go on at once, and
those that are started make calls again. 'groupferry status' says why it halted.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			q, err := p.open(qf, true)
			if err != nil {
				return err
			}
			defer q.Close()
			was, err := q.ClearHalt(p.soft)
			if err != nil {
				return err
			}
			if was == nil {
				p.console.say("nothing was halted")
				return nil
			}
			p.console.say("resumed; it was %s since %s: %s", was.State, was.Since.Local().Format(time.DateTime), was.Reason)
			return nil
		},
	}
	qf.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}
