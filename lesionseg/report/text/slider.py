"""The slider that moves the threshold."""

SLIDER = "Score from which a mark counts"
SLIDER_TEXT = (
    "Move the score to see what another choice would have given on these same scans. Only the "
    "operating point of the report has an interval; a score picked by looking here would flatter."
)
SLIDER_BACK = "Back to the operating point"
SLIDER_MISSES = "Missed at this score"
SLIDER_NONE = "No slider: the marks have no scores, or no operating point is stated."
HEADINGS_SLIDER_SIZES = ("Size", "Found")
HEADINGS_SLIDER_MISSES = ("Scan", "Lesion", "Size", "Found from score")
# {…} are filled in by the page's script as the slider moves
SLIDER_SAID = (
    "From a score of {score}: found {found} of {lesions} lesions ({share}), {rate} marks a scan "
    "match no reference lesion ({false} on {cases} scans){free}."
)
SLIDER_FREE = "; {rate} on each of the {cases} lesion-free scans"
SLIDER_NEVER = "never"
SLIDER_OF = "{found} of {n}"
