// A client of containerd's Go module: pulls an image, runs a container, executes in it, and tells what it saw, line by line.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address, namespace, reference, fifos string) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), 2*time.Minute)
	defer cancel()
	c, err := client.New(address)
	if err != nil {
		return err
	}
	defer c.Close()
	envelopes, failed := c.Subscribe(ctx, `topic~="^/tasks/"`)

	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
	image, err := c.Pull(ctx, reference, client.WithPullUnpack, client.WithResolver(resolver))
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	fmt.Println("pulled", image.Name())
	script := "cat /etc/changed; exec sleep 1000"
	container, err := c.NewContainer(ctx, "go", client.WithNewSnapshot("go", image),
		client.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sh", "-c", script)))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	// A buffer that both streams are copied to at the same time would lose what one of them brings.
	var output bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &output, os.Stderr), cio.WithFIFODir(fifos)))
	if err != nil {
		return fmt.Errorf("create task: %w", err)
	}
	ended, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}

	spec, err := container.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = []string{"sh", "-c", "echo inside; exit 7"}
	var said bytes.Buffer
	exec, err := task.Exec(ctx, "e", &process, cio.NewCreator(cio.WithStreams(nil, &said, os.Stderr), cio.WithFIFODir(fifos)))
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	execEnded, err := exec.Wait(ctx)
	if err != nil {
		return err
	}
	if err := exec.Start(ctx); err != nil {
		return fmt.Errorf("start exec: %w", err)
	}
	status := <-execEnded
	exec.IO().Wait()
	fmt.Printf("exec said %q and ended with %d\n", said.String(), status.ExitCode())
	if _, err := exec.Delete(ctx); err != nil {
		return err
	}

	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	status = <-ended
	if _, err := task.Delete(ctx); err != nil {
		return fmt.Errorf("delete task: %w", err)
	}
	fmt.Printf("task said %q and ended with %d\n", output.String(), status.ExitCode())
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	for {
		select {
		case envelope := <-envelopes:
			fmt.Println("event", envelope.Topic)
			if envelope.Topic == "/tasks/delete" {
				return nil
			}
		case err := <-failed:
			return fmt.Errorf("events: %w", err)
		}
	}
}
