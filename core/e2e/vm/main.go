// Command vm is what the virtual machine of tools/vm runs: checks that need a machine where cgroup version 2 rules alone,
// and a kernel with all that containers can have: traffic control, network filters, file systems with quotas.
//
// It runs tests of the packages that touch the kernel, compiled outside, and then real clusters of the built programs.
// It prints each check with its outcome and all that went wrong, lists what was skipped and why, and exits with 1 if
// anything went wrong or was skipped for want of what this machine is there to have. It relies on what tools/vm/init has
// mounted and leaves ending the machine to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	src := flag.String("src", "/src", "folder laid out like the repository, with bin/ and the compiled tests")
	only := flag.String("run", "", "run only checks whose names match this regular expression")
	names := flag.String("tests", "", "run only tests whose names match this regular expression, also such as are not run otherwise")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(run(context.Background(), *src, wanted, *names))
}

// A check is one thing the machine must show.
type check struct {
	name string
	run  func(ctx context.Context) error
}

// patience bounds one check. An emulated processor is ten to thirty times slower than a real one.
const patience = 15 * time.Minute

// testPatience is less, so that a test that hangs shows where.
const testPatience = 14 * time.Minute

func run(ctx context.Context, src string, wanted *regexp.Regexp, names string) int {
	checks := []check{{"machine", machine}}
	var skips skips
	tests, err := compiledTests(src, names, &skips)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	checks = append(checks, tests...)
	checks = append(checks, clusterChecks(src)...)
	checks = append(checks, subsystemChecks(src, &skips)...)
	checks = append(checks, quotaChecks(src)...)

	var failed []string
	ran := 0
	for _, c := range checks {
		if !wanted.MatchString(c.name) {
			continue
		}
		ran++
		fmt.Printf("=== %s\n", c.name)
		begun := time.Now()
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			return c.run(ctx)
		}()
		outcome := "ok"
		if err != nil {
			failed = append(failed, c.name)
			outcome = "FAILED"
			fmt.Println(indent(err.Error()))
		}
		fmt.Printf("--- %s: %s (%.1f s)\n", outcome, c.name, time.Since(begun).Seconds())
	}
	skips.list()
	if ran == 0 {
		fmt.Printf("no check is named like %s\n", wanted)
		return 1
	}
	if len(failed) > 0 {
		fmt.Printf("%d of %d checks failed: %s\n", len(failed), ran, strings.Join(failed, ", "))
		return 1
	}
	fmt.Printf("all %d checks passed\n", ran)
	return 0
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
}

// hierarchy is where version 2 is mounted in the guest.
const hierarchy = "/sys/fs/cgroup"

// machine proves that this is the machine the other checks mean: without it they would pass by testing version 1.
func machine(context.Context) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	controllers, err := os.ReadFile(filepath.Join(hierarchy, "cgroup.controllers"))
	if err != nil {
		return err
	}
	fmt.Printf("    Linux %s, controllers %s", unix.ByteSliceToString(uts.Release[:]), controllers)
	for _, want := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(controllers)), want) {
			return fmt.Errorf("cgroup version 2 has no %s controller here", want)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup" {
			return fmt.Errorf("cgroup version 1 is mounted at %s", f[1])
		}
	}
	return nil
}
