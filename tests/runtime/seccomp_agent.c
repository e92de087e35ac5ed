/* A seccomp supervisor: takes a listener from a runtime on the socket named by its argument, prints the state that came with it, and
 * answers each notification until the container has ended: mkdir fails with ENOSPC, chmod is let through, everything else gets EXDEV. */
#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int receive(int connection, char *text, size_t size, ssize_t *length) {
	union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
	struct iovec part = { text, size };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control };
	int listener = -1;
	*length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = *length > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(&listener, CMSG_DATA(header), sizeof listener);
	/* The rest of the text, until the runtime closes the connection. */
	for (ssize_t more; *length > 0 && (more = read(connection, text + *length, size - *length)) > 0;)
		*length += more;
	return listener;
}

static int answer(int listener) {
	struct seccomp_notif call;
	struct seccomp_notif_resp reply;
	memset(&call, 0, sizeof call);
	memset(&reply, 0, sizeof reply);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
		return errno == EINTR || errno == ENOENT ? 0 : -1;
	reply.id = call.id;
	if (call.data.nr == SYS_mkdir || call.data.nr == SYS_mkdirat)
		reply.error = -ENOSPC;
	else if (call.data.nr == SYS_chmod || call.data.nr == SYS_fchmodat)
		reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	else
		reply.error = -EXDEV;
	/* The caller may have been killed meanwhile. */
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &reply) < 0 && errno != ENOENT ? -1 : 0;
}

int main(int count, char **words) {
	static char text[65536];
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	ssize_t length;
	if (count != 2 || strlen(words[1]) >= sizeof name.sun_path)
		return 2;
	strcpy(name.sun_path, words[1]);
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server < 0 || bind(server, (struct sockaddr *)&name, sizeof name) < 0 || listen(server, 8) < 0)
		return 3;
	int connection = accept(server, NULL, NULL);
	int listener = connection < 0 ? -1 : receive(connection, text, sizeof text, &length);
	if (listener < 0)
		return 4;
	printf("%.*s\n", (int)length, text);
	fflush(stdout);
	close(connection);
	for (struct pollfd state = { listener, POLLIN, 0 };;) {
		if (poll(&state, 1, -1) < 0 && errno != EINTR)
			return 5;
		if (state.revents & POLLIN) {
			if (answer(listener) < 0)
				return 6;
		} else if (state.revents & POLLHUP)
			return 0;
	}
}
