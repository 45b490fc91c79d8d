package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// accepted are the reasons for which a test may be skipped here: what a machine without hardware, with cgroup version 2
// alone and without a toolchain cannot have. A test that is skipped for another reason fails its check, so that none is
// ever passed over unseen.
var accepted = regexp.MustCompile(`cgroup version 1|of version 1|only version 2|there is no C compiler|no GPU|needs python3|counts no events|one core only|of its own on cgroup version 2|device rules on cgroup version 2`)

// skips are the tests that were skipped, with their reasons.
type skips []string

// list prints them.
func (s skips) list() {
	if len(s) == 0 {
		return
	}
	fmt.Printf("skipped, since this machine cannot have what they need:\n%s\n", indent(strings.Join(s, "\n")))
}

// compiledTests makes a check of each package.test below src. Files beside it, package.run and package.skip, say by regular
// expressions which tests are run and which of them are not; instead of both there may be names.
func compiledTests(src, names string, skipped *skips) ([]check, error) {
	var checks []check
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "package.test" {
			return err
		}
		dir := filepath.Dir(path)
		name, err := filepath.Rel(src, dir)
		if err != nil {
			return err
		}
		t := tests{dir: dir, program: path, name: name, run: names, skipped: skipped}
		if names == "" {
			run, errRun := os.ReadFile(filepath.Join(dir, "package.run"))
			skip, errSkip := os.ReadFile(filepath.Join(dir, "package.skip"))
			for _, err := range []error{errRun, errSkip} {
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			t.run, t.skip = strings.TrimSpace(string(run)), strings.TrimSpace(string(skip))
		}
		checks = append(checks, check{"tests of " + name, t.check})
		return nil
	})
	if err == nil && len(checks) == 0 {
		err = fmt.Errorf("no compiled tests below %s", src)
	}
	return checks, err
}

// tests are those of one package.
type tests struct {
	dir, program string
	name         string // of the package
	run, skip    string // regular expressions of names; "" are all and none
	skipped      *skips
}

// check runs them in their folder, shows one line a test, and of those that fail all that they said.
func (t *tests) check(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, t.program, "-test.v", "-test.timeout="+testPatience.String(), "-test.run="+t.run, "-test.skip="+t.skip)
	cmd.Dir = t.dir
	cmd.WaitDelay = time.Second
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		in.Close()
		ended <- err
	}()
	var wrong []error
	passed, skipped := 0, 0
	var since []string          // what was said since the last test ended
	said := map[string]string{} // by a test's name, what it logged last: if it is skipped, why
	name := ""                  // of the test that logs
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "--- FAIL: "):
			fmt.Println(indent(strings.Join(append(since, line), "\n")))
			since = nil
		case strings.HasPrefix(line, "--- "):
			fmt.Println(indent(line))
			since = nil
		default:
			since = append(since, line)
		}
		switch words := strings.Fields(line); {
		case len(words) == 0:
		case words[0] == "===" && len(words) > 2:
			name = words[2]
		case words[0] == "---" && len(words) > 2:
			switch words[1] {
			case "PASS:":
				passed++
			case "SKIP:":
				skipped++
				name := words[2]
				if accepted.MatchString(said[name]) {
					*t.skipped = append(*t.skipped, fmt.Sprintf("%s %s: %s", t.name, name, said[name]))
				} else {
					wrong = append(wrong, fmt.Errorf("%s was skipped: %s", name, said[name]))
				}
			}
		default:
			said[name] = strings.TrimSpace(line)
		}
	}
	_, _ = io.Copy(io.Discard, out) // a line too long for the scanner must not stop the test's output
	err := <-ended
	fmt.Printf("    %d passed, %d skipped\n", passed, skipped)
	if err != nil {
		// A test that ends the process, as one that takes too long does, has no line of its own.
		return fmt.Errorf("%w\n%s", err, strings.Join(since, "\n"))
	}
	if passed == 0 {
		wrong = append(wrong, errors.New("no test passed: nothing was tested"))
	}
	return errors.Join(wrong...)
}
