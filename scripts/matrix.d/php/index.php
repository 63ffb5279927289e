<?php
$path = $_SERVER["REQUEST_URI"];
if (str_starts_with($path, "/held/")) {
    file_get_contents(getenv("GATES") . "/" . basename($path));
}
echo "pid=" . getmypid() . "\n";
