package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"groupferry/internal/broker"
)

// buildVersion and buildRevision are set by the linker in a release.
var (
	buildVersion  string
	buildRevision string
)

// build says which version this is, and of which revision if that is known: the linker set it, or the go command noted it.
func build() (version, revision string) {
	version, revision = buildVersion, buildRevision
	if info, ok := debug.ReadBuildInfo(); ok {
		version = cmp.Or(version, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = cmp.Or(revision, s.Value)
			}
		}
	}
	return cmp.Or(version, "(devel)"), revision
}

// version is what --version prints.
func version() string {
	version, revision := build()
	return strings.TrimSpace(version + " " + revision)
}

// A versionReport is what the command version prints. Programs read its JSON form; the first three are the labels of the
// metric groupferry_build_info.
type versionReport struct {
	Version    string `json:"version"`
	Revision   string `json:"revision"`
	GoVersion  string `json:"goversion"`
	Platform   string `json:"platform"`
	NATSServer string `json:"nats_server"`
}

func (p *program) versionCommand() *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show version, revision, and what it was built with",
		Long: `version shows the version and the revision of groupferry, the version of Go that
built it, the platform that it was built for, and the version of the embedded
NATS server. --version shows the first two in a line.`,
		Annotations: exits{}.annotations(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(p); err != nil {
				return err
			}
			version, revision := build()
			r := versionReport{version, cmp.Or(revision, "unknown"), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, broker.ServerVersion}
			return out.write(p.stdout, r, func() string {
				return fmt.Sprintf("groupferry %s\n  revision       %s\n  go             %s\n  platform       %s\n  NATS server    %s, embedded\n",
					r.Version, r.Revision, r.GoVersion, r.Platform, r.NATSServer)
			})
		},
	}
	out.add(cmd, "text", "json")
	return cmd
}
