//! Files of containers from outside: cp, diff, export, commit; volumes.

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (
        0,
        "$run --detach --name files bb sh -c 'mkdir /w; echo one > /w/a; ln -s a /w/l; rm /bin/sleep; touch /ready; \
         while :; do :; done' >/dev/null; until $docker exec files ls /ready; do :; done",
    ),
    (0, "$docker diff files | sort"),
    (0, "$docker cp files:/w $dir/out && ls $dir/out && cat $dir/out/a && readlink $dir/out/l"),
    (0, "$docker cp files:/w/. $dir/out2 && ls $dir/out2"),
    (0, "$docker cp files:/w/a $dir/single && cat $dir/single"),
    (0, "$docker cp files:/w/a - | tar t; $docker cp files:/w - | tar t | sort"),
    (0, "echo two > $dir/two; $docker cp $dir/two files:/w/ && $docker exec files cat /w/two"),
    (0, "$docker cp $dir/two files:/w/three && $docker exec files cat /w/three"),
    (
        0,
        "mkdir -p $dir/tree/sub; echo x > $dir/tree/sub/x; $docker cp $dir/tree files:/ && $docker exec files cat /tree/sub/x",
    ),
    (1, "$docker cp files:/no/such $dir/nothing"),
    (1, "$docker cp $dir/two files:/no/such/directory/"),
    (0, "$docker kill files; $docker cp $dir/two files:/w/four && $docker cp files:/w/four - | tar xO"),
    (0, "$docker export files | tar t | grep -E '^w/' | sort"),
    (
        0,
        "$docker commit --message said files made:1 >/dev/null; $docker run --rm --network none made:1 cat /w/four; \
         $docker history --format '{{.Comment}}' made:1 | head -1; $docker rm files; \
         $docker run --rm --network none made:1 ls /bin/sleep; $docker rmi made:1 | grep -c Untagged",
    ),
    (
        0,
        "$run --rm --volume data:/d bb sh -c 'echo kept > /d/f'; $run --rm --volume data:/d:ro bb cat /d/f; \
         $run --rm --mount type=volume,src=data,dst=/d bb ls /d",
    ),
    (0, "$run --rm --volume copied:/bin bb true; $run --rm --volume copied:/c bb ls /c | head -3"),
    (
        0,
        "$run --name has --volume /anon bb touch /anon/f; $run --rm --volumes-from has bb ls /anon; $docker rm --volumes has",
    ),
];

#[test]
fn files_go_in_and_out_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    compare(&ours, &reference, LINES);
    ours.finish();
    reference.finish();
}
